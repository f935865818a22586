"""The code blocks of a Markdown file, and the marks before them.

A mark is an HTML comment right before a block, ``<!-- example: needs an NPU -->``: it says why
nothing checks the block.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "docker/README.md"]
PAGES += sorted(ROOT.glob("README*.md")) + sorted((ROOT / "docs").rglob("*.md"))

_MARK = re.compile(r"<!--\s*example:\s*(\S.*?)\s*-->\s*")


@dataclass(frozen=True)
class Block:
    """A code block: the page it stands on, its first line there, its language, its text, and its mark if it has one.

    An indented block has the language "", and so has a fence without one.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str | None

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page):
    """Return the blocks of a page in their order."""
    tokens = _parse(page)
    blocks = []
    for index, token in enumerate(tokens):
        if token.type not in ("fence", "code_block"):
            continue
        before = tokens[index - 1] if index else None
        mark = _MARK.fullmatch(before.content) if before is not None and before.type == "html_block" else None
        language = token.info.split(maxsplit=1)[0] if token.info.strip() else ""
        blocks.append(Block(page, token.map[0] + 1, language, token.content, mark and mark[1]))
    return blocks


def read_inline_code(page):
    """Return the pieces of code within the sentences and tables of a page."""
    return [child.content for token in _parse(page) for child in token.children or [] if child.type == "code_inline"]


def _parse(page):
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
