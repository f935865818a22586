"""Google Landmarks v2 as published (Weyand et al., 2020): a table of images and landmarks beside ``train/``."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ehm.data.sources.base import FileSource, Names, Split
from ehm.data.sources.image_files import list_image_files
from ehm.data.sources.inventory import Unused, describe_layout
from ehm.errors import DataError
from ehm.storage.reading import read_rows

__all__ = ["holds_gldv2", "open_gldv2"]

_DIGITS = 18
"""Number of digits of a landmark's number that always fits into 64 bits."""
_TABLES = {"train_clean.csv": ("landmark_id", "images"), "train.csv": ("id", "landmark_id")}
"""The columns of each table; Kaggle's train.csv has no ``url``. The first that is there counts: the paper trains on the
cleaned set."""


def holds_gldv2(root: Path) -> bool:
    """Return whether a table with GLDv2's columns lies beside a folder ``train/``.

    The names of the tables are not enough: many a data set has a train.csv.
    """
    if not (root / "train").is_dir():
        return False
    return any((root / name).is_file() and _has_columns(root / name) for name in _TABLES)


def _has_columns(table: Path) -> bool:
    try:
        # spreadsheets write a byte order mark
        with table.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return set(_TABLES[table.name]) <= set(header)


def open_gldv2(source: str, split: Split) -> FileSource:
    """Open GLDv2: image abc... is ``train/a/b/c/abc....jpg``; a class is a landmark, named by its number.

    ``train_clean.csv`` has a row for each landmark (``landmark_id,images``, 1.58 million images of 81,313), or else
    ``train.csv`` one for each image (``id,landmark_id``, and others). There is no validation part. Raises DataError
    that names the table and the line if it is something else, or if the first image of the table is missing.
    """
    root = Path(source).expanduser()
    if split == "val":
        raise DataError(f"data.source {source}: GLDv2 has no validation part with landmarks; set benchmark")
    table = next((root / name for name in _TABLES if (root / name).is_file()), None)
    if table is None or not (root / "train").is_dir():
        raise DataError(
            f"data.source {source}: not GLDv2's layout, a folder train/ and {' or '.join(_TABLES)}; "
            "data.layout=auto takes a folder for each class"
        )
    images = []
    landmarks = []
    for image, landmark in _read_landmarks(table):
        images.append("/".join(["train", *image[:3], f"{image}.jpg"]))
        landmarks.append(landmark)
    if not images:
        raise DataError(f"{table}: has no images")
    if not (root / images[0]).is_file():
        raise DataError(f"{table}: its first image is not there: {root / images[0]}")
    # classes in the order of the landmarks' numbers
    known, labels = np.unique(np.array(landmarks, np.int64), return_inverse=True)
    notes = [describe_layout(f"GLDv2 by {table.name}", (), len(known))]
    unused = Unused()
    named = set(images)
    for file in list_image_files(root, "train", unused):
        if file not in named:
            unused.add(f"not named in {table.name}", file)
    if unused:
        notes.append(unused.describe())
    classes = tuple(map(str, known.tolist()))
    return FileSource(root, Names(images), labels.astype(np.int64), classes, "all", notes=tuple(notes))


def _read_landmarks(table: Path) -> Iterator[tuple[str, int]]:
    """Yield each image with its landmark."""
    columns = _TABLES[table.name]
    for line, row in read_rows(table, columns):
        images = row["images" if "images" in columns else "id"]
        landmark = row["landmark_id"]
        is_number = landmark.isdecimal() and len(landmark) <= _DIGITS
        if not (is_number and images.strip() and all(len(image) > 2 for image in images.split())):
            raise DataError(f"{table}: line {line}: expected a landmark's number and names of images")
        for image in images.split():
            yield image, int(landmark)
