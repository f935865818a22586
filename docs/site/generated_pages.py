"""Add the reference, which is made from the code, to the pages of the site and to its navigation.

mkdocs calls the functions by their names (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

from __future__ import annotations

import re
from functools import cache

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference.commands import write_command_pages
from reference.configuration import write_configuration_pages
from reference.http_api import write_http_pages
from reference.python import write_python_pages

SECTION = "Reference"
_WRITERS = {
    "commands": write_command_pages,
    "configuration": write_configuration_pages,
    "python": write_python_pages,
    "http": write_http_pages,
}
_ROLE = re.compile(r":(?:mod|class|func|data|meth|attr):(?=<)")
"""The role of a name in a docstring, which only Sphinx understands."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages to the section of the navigation that is called Reference."""
    for section in config.nav or []:
        if isinstance(section, dict) and SECTION in section:
            section[SECTION] += [
                {"Commands": list(_write("commands"))},
                {"Configuration keys": list(_write("configuration"))},
                *_write("python"),
                *(place for place in _write("http") if place.endswith(".md")),
            ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages themselves."""
    for kind in _WRITERS:
        for place, content in _write(kind).items():
            files.append(File.generated(config, place, content=content))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take the roles of names out of docstrings."""
    return _ROLE.sub("", html) if page.file.generated_by else html


@cache
def _write(kind: str) -> dict[str, str]:
    """Return the pages of a kind; the code that they are made from does not change while mkdocs runs."""
    return _WRITERS[kind]()
