r"""Let Python-Markdown read the tables of forges: a pipe in the code of a cell is written \| there.

mkdocs calls the function by its name (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

from __future__ import annotations

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_ROW = re.compile(r"^ *\|.*\|$", re.MULTILINE)
_CODE = re.compile(r"`[^`\n]+`")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take the backslashes before pipes out of the code in tables, which Python-Markdown would show."""
    return _ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), markdown)
