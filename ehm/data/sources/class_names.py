"""Read the names of the classes that masks number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ehm.data.sources.ade20k import CLASSES
from ehm.data.sources.masks import IGNORED
from ehm.errors import DataError
from ehm.storage.reading import read_text

__all__ = ["ADE20K_TABLE", "CLASSES_FILE", "read_ade20k_classes", "read_classes_file"]

CLASSES_FILE = "classes.txt"
ADE20K_TABLE = "objectInfo150.txt"


def read_classes_file(root: Path) -> tuple[str, ...]:
    """Return the names in classes.txt, a line each; none if there is no such file."""
    file = root / CLASSES_FILE
    if not file.is_file():
        return ()
    names = map(str.strip, read_text(file).splitlines())
    return _check_distinct(file, list(filter(None, names)))


def read_ade20k_classes(root: Path) -> tuple[str, ...]:
    """Return the first name of each class in the table that ADE20K brings along (number, ratio, train, val, names)."""
    file = root / ADE20K_TABLE
    if not file.is_file():
        return CLASSES
    names = []
    for line in read_text(file).splitlines():
        columns = line.split(maxsplit=4)
        if len(columns) == 5 and columns[0].isdigit():
            names.append(columns[4].split(",")[0].strip())
    # a table of another set, or one that cannot be understood, names nothing
    if len(set(names)) == len(names) == len(CLASSES):
        return tuple(names)
    return CLASSES


def _check_distinct(file: Path, names: Sequence[str]) -> tuple[str, ...]:
    # 255 is the value of pixels that do not count
    if not 2 <= len(names) <= IGNORED:
        raise DataError(f"{file}: names {len(names)} classes; a mask of 8 bits has 2 to {IGNORED}")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{file}: names the class {name} twice")
    return tuple(names)
