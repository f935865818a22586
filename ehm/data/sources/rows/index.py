"""Index the rows of a Parquet or Arrow file: their groups, names and classes; the images themselves are not read."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.base import MOST_CLASSES, UNLABELLED
from ehm.data.sources.rows.columns import RowColumns, choose_columns
from ehm.data.sources.rows.files import RowFile, open_row_file
from ehm.data.stores.cache import INDEX, Cache, lock_file
from ehm.data.stores.reader import name_version
from ehm.data.stores.store import Store, StoredFile
from ehm.errors import DataError, WriteError
from ehm.storage.writing import replace_file

if TYPE_CHECKING:
    from ehm.config.sources import TableColumns

__all__ = ["RowIndex", "read_row_index"]

_VERSION = "rows-v1"


@dataclass(frozen=True)
class RowIndex:
    """The rows of one file: the numbers of ``rows`` and bytes (``sizes``) of each group, and each row's name and label.

    ``labels`` (n,) number ``values``, the texts or numbers of the classes of this file in sorted order; -1 stands for
    no label.
    """

    image: str
    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: list[str]
    labels: NDArray[np.int64]
    values: list[str | int]
    classes: tuple[str, ...]


def read_row_index(store: Store, cache: Cache, file: StoredFile, wanted: TableColumns) -> RowIndex:
    """Return the index of a file from ``cache``, or from its footer and its columns of names and classes if it is new.

    Raises DataError if it cannot be read, or if its columns do not fit ``wanted``.
    """
    asked = hashlib.sha256(repr(wanted).encode()).hexdigest()[:8]
    path = cache.folder / INDEX / f"{name_version(file)}-{_VERSION}-{asked}.npz"
    with lock_file(path.with_suffix(".lock")):
        kept = _load_index(path)
        if kept is not None:
            return kept
        opened = open_row_file(store, file)
        index = _index_rows(opened, choose_columns(opened, str(file), wanted), file)
        # without room the columns are read again next time
        with suppress(WriteError), replace_file(path, shared=True) as temporary:
            _save_index(temporary, index)
        return index


def _index_rows(opened: RowFile, columns: RowColumns, file: StoredFile) -> RowIndex:
    names: list[str] = []
    cells: list[Any] = []
    for group in range(len(opened.rows)):
        paths = opened.read_column(group, columns.name).to_pylist() if columns.name else [None] * opened.rows[group]
        for path in paths:
            names.append(os.path.basename(path) if path else f"row-{len(names):06d}")
        if columns.label:
            cells += opened.read_column(group, columns.label).to_pylist()
    present = [cell for cell in cells if cell is not None]
    if any(isinstance(cell, int) and cell >= MOST_CLASSES for cell in present):
        raise DataError(f"data.source: {columns.label} of {file} holds {max(present):,}, which is no number of a class")
    values = sorted(set(present))
    numbers = {value: number for number, value in enumerate(values)}
    labels = [numbers.get(cell, UNLABELLED) for cell in cells] if cells else [UNLABELLED] * len(names)
    return RowIndex(
        image=columns.image,
        rows=np.array(opened.rows, np.int64),
        sizes=np.array(opened.sizes, np.int64),
        names=names,
        labels=np.array(labels, np.int64),
        values=values,
        classes=columns.classes,
    )


def _load_index(path: Path) -> RowIndex | None:
    """Return a kept index, None if there is none yet or it is damaged."""
    try:
        with open(path, "rb") as kept, np.load(kept) as stored:
            texts = json.loads(stored["texts"].tobytes())
            return RowIndex(
                texts["image"],
                stored["rows"],
                stored["sizes"],
                texts["names"],
                stored["labels"],
                texts["values"],
                tuple(texts["classes"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save_index(path: Path, index: RowIndex) -> None:
    texts = {"image": index.image, "names": index.names, "values": index.values, "classes": index.classes}
    texts_in_bytes = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)
    np.savez(path, rows=index.rows, sizes=index.sizes, labels=index.labels, texts=texts_in_bytes)
