"""Google Landmarks v2 as published (Weyand et al., 2020): a table of images and landmarks beside ``train/``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ehm.data.source import FileSource, Names, Split
from ehm.errors import DataError
from ehm.reading import read_rows

__all__ = ["gldv2", "holds_gldv2"]

_DIGITS = 18
"""Of the largest number of a landmark: what fits into 64 bits."""
_TABLES = {"train_clean.csv": ("landmark_id", "images"), "train.csv": ("id", "url", "landmark_id")}
"""The first that is there counts: the paper trains on the cleaned set."""


def holds_gldv2(root: Path) -> bool:
    """Whether a table of GLDv2 lies beside a folder ``train/``."""
    return (root / "train").is_dir() and any((root / name).is_file() for name in _TABLES)


def gldv2(source: str, split: Split) -> FileSource:
    """GLDv2: image abc... is ``train/a/b/c/abc....jpg``; a class is a landmark, named by its number.

    ``train_clean.csv`` has a row for each landmark (``landmark_id,images``, 1.58 million images of 81,313), or else
    ``train.csv`` one for each image (``id,url,landmark_id``). There is no validation part. Raises DataError that names
    the table and the line where it is something else, or where the first image of the table is missing.
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
    images, landmarks = [], []
    for image, landmark in _rows(table):
        images.append("/".join(["train", *image[:3], f"{image}.jpg"]))
        landmarks.append(landmark)
    if not images:
        raise DataError(f"{table}: has no images")
    if not (root / images[0]).is_file():
        raise DataError(f"{table}: its first image is not there: {root / images[0]}")
    known, labels = np.unique(np.array(landmarks, np.int64), return_inverse=True)
    return FileSource(root, Names(images), labels.astype(np.int64), tuple(map(str, known.tolist())), "all")


def _rows(table: Path) -> Iterator[tuple[str, int]]:
    """Each image with its landmark."""
    columns = _TABLES[table.name]
    for line, row in read_rows(table, columns):
        images = row["images" if "images" in columns else "id"]
        landmark = row["landmark_id"]
        is_number = landmark.isdecimal() and len(landmark) <= _DIGITS
        if not (is_number and images.strip() and all(len(image) > 2 for image in images.split())):
            raise DataError(f"{table}: line {line}: expected a landmark's number and names of images")
        for image in images.split():
            yield image, int(landmark)
