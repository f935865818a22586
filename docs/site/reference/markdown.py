"""Tables and text in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["escape_cell", "link_guides", "write_table"]

_GUIDE = re.compile(r"\bdocs/([a-z_]+)\.md")


def write_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells are Markdown; an empty text if there are no rows."""
    lines = [_write_row(row) for row in rows]
    if not lines:
        return ""
    return "\n".join([_write_row(header), "|" + "---|" * len(header), *lines]) + "\n\n"


def escape_cell(text: str) -> str:
    """Return plain text as the Markdown of a cell."""
    text = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"([|*`\[])", r"\\\1", text)
    return " ".join(text.split())


def link_guides(text: str, to_docs: str) -> str:
    """Return text with links to the guides that it names, such as docs/data.md; ``to_docs`` leads to their folder."""
    return _GUIDE.sub(lambda match: f"[{match[1].replace('_', ' ')}]({to_docs}{match[1]}.md)", text)


def _write_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
