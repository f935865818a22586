"""The messages that docs/troubleshooting.md explains are those of the code."""

import ast
import re

import pytest
from documented.blocks import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
VARYING = "…"
SHORTEST = 8
"""Characters of fixed text that a message has at least, so that not every text contains it."""


def quoted_messages():
    """Return the messages in the tables whose first column is "message of ehm"."""
    tables = re.findall(r"^\| message of ehm \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [re.match(r"\| `([^`]+)`", row)[1] for table in tables for row in table.splitlines()]


def build_pattern(message):
    """Return what finds a message: between fixed pieces stands something that varies, and never the end of a text."""
    pieces = [piece.strip() for piece in message.split(VARYING)]
    assert max(map(len, pieces)) >= SHORTEST, message
    return re.compile(r"[^\0]*?".join(map(re.escape, pieces)))


@pytest.fixture(scope="module")
def texts():
    """All texts in the source, with ``…`` for what varies in them."""
    found = set()
    for folder in ("ehm", "backends", "deploy"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.add(
                        "".join(part.value if isinstance(part, ast.Constant) else VARYING for part in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return "\0".join(found)


def test_every_message_is_printed_by_the_code(texts):
    messages = quoted_messages()
    assert len(messages) > 40
    assert [message for message in messages if not build_pattern(message).search(texts)] == []
