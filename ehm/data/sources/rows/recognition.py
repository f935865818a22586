"""Recognise Parquet and Arrow files with the bytes of images on this machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ehm.data.sources.parts import list_visible_folders, name_part
from ehm.data.sources.rows.columns import holds_image_bytes

__all__ = ["holds_rows", "names_rows"]

_SUFFIXES = (".parquet", ".arrow")


def names_rows(source: str) -> bool:
    """Return whether ``source`` is a file with images in its rows, or a pattern for such files."""
    if not source.lower().endswith(_SUFFIXES):
        return False
    path = Path(source).expanduser()
    if not path.is_file():
        return "*" in source or "{" in source
    return path.suffix.lower() == ".arrow" or _holds_bytes(path)


def holds_rows(root: Path) -> bool:
    """Return whether a folder, or one of its parts, holds such files."""
    folders = [root, *(root / name for name in list_visible_folders(root) if name_part(name) is not None)]
    return any(_has_rows(folder) for folder in folders)


def _has_rows(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    for name in sorted(os.listdir(folder)):
        if name.lower().endswith(".arrow"):
            return True
        if name.lower().endswith(".parquet"):
            return _holds_bytes(folder / name)
    return False


def _holds_bytes(path: Path) -> bool:
    """Return whether a Parquet file has a column of bytes; one without is a table of paths."""
    with suppress(ImportError, OSError, ValueError):  # pyarrow's errors are among the last two
        from pyarrow import parquet

        return holds_image_bytes(parquet.read_schema(path))
    return False
