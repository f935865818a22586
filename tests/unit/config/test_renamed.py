"""Old names of keys: their table, the page that lists them, and when they go."""

import re
from pathlib import Path

import tomllib

from ehm.config.commands import COMMANDS, list_names
from ehm.config.renamed import RENAMED

ROOT = Path(__file__).parents[3]


def read_version(text):
    """Return the first two numbers of a version, which compare as numbers."""
    return tuple(int(part) for part in text.split(".")[:2])


def test_new_names_exist_and_old_ones_are_gone():
    names = {name for kind in COMMANDS for name in list_names(kind)}
    for key in RENAMED:
        assert f"{key.section}.{key.new}" in names
        assert f"{key.section}.{key.old}" not in names


def test_an_old_name_is_read_for_two_versions_and_then_removed():
    version = read_version(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    for key in RENAMED:
        since = read_version(key.since)
        assert read_version(key.last) == (since[0], since[1] + 1)
        assert version <= read_version(key.last), f"{key.old}: remove it, and say so under Removed in CHANGELOG.md"


def test_the_page_lists_all_of_them():
    page = (ROOT / "docs/stability.md").read_text()
    rows = re.findall(r"^\| (\w+\.\w+) \| `([\w.]+)`[^|]* \| (0\.\d+) \| (0\.\d+) \|$", page, re.MULTILINE)
    expected = [(f"{key.section}.{key.old}", f"{key.section}.{key.new}", key.since, key.last) for key in RENAMED]
    assert rows == expected
