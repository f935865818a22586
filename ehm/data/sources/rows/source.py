"""Sources of images in the rows of Parquet or Arrow files, on this machine or in a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.data.decoding.channels import load_image
from ehm.data.sources.base import UNLABELLED, Names, Split
from ehm.data.sources.inventory import Unused, describe_layout, no_images
from ehm.data.sources.parts import Part, list_part_files, no_validation_part
from ehm.data.sources.rows.files import LOCAL
from ehm.data.sources.rows.index import RowIndex, read_row_index
from ehm.data.sources.rows.reader import RowReader
from ehm.data.stores.cache import Cache
from ehm.data.stores.store import Store, StoredFile
from ehm.data.threads import map_in_threads
from ehm.errors import DataError

if TYPE_CHECKING:
    from ehm.config.sources import TableColumns

__all__ = ["RowSource", "open_rows"]

_INDEXED_AT_ONCE = 16
"""Files that are indexed at the same time: most of the time goes by until a store answers."""


@dataclass(frozen=True)
class RowSource:
    """Images in rows: for each, the number of its group, and that of its row there (n,).

    ``group_file``, ``group_number`` and ``group_bytes`` (g,) are the file of each group, its number there, its size.
    """

    files: tuple[str, ...]
    group: NDArray[np.int64]
    row: NDArray[np.int64]
    group_file: NDArray[np.int64]
    group_number: NDArray[np.int64]
    group_bytes: NDArray[np.int64]
    members: Names
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    split: Split
    reader: RowReader
    notes: tuple[str, ...] = ()
    pixels: PixelFormat = RGB_BYTES

    def __len__(self) -> int:
        return len(self.group)

    @property
    def size(self) -> NDArray[np.int64]:
        """The bytes of the group of each image (n,), which stand for its own: those are known only once it is read."""
        return self.group_bytes[self.group]

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64], classes: tuple[str, ...]) -> RowSource:
        """Return the images at ``indices`` (n,) alone, with ``labels`` (n,) that number ``classes``."""
        members = Names(self.members[index] for index in indices.tolist())
        return replace(
            self,
            group=self.group[indices],
            row=self.row[indices],
            members=members,
            labels=labels,
            classes=classes,
        )

    def load(self, index: int) -> Any:
        """Read the image as :func:`ehm.data.decoding.channels.load_image`; BrokenImage has its name and the reason."""
        return load_image(BytesIO(self.read_bytes(index)), self.pixels, self.name(index))

    def read_bytes(self, index: int) -> bytes:
        """Return the image as it is stored; raises BrokenImage with its name and the reason."""
        return self.reader.read(self.name(index), *self._locate_group(index), int(self.row[index]))

    def fetch_ahead(self, indices: Sequence[int]) -> None:
        """Begin to read the groups of images, which :meth:`load` then waits for."""
        self.reader.fetch_ahead(dict.fromkeys(map(self._locate_group, indices)))

    def name(self, index: int) -> str:
        """Return the path of the file, and the name of the image or its row behind it."""
        file, _ = self._locate_group(index)
        return f"{self.files[file]}/{self.members[index]}"

    def _locate_group(self, index: int) -> tuple[int, int]:
        group = self.group[index]
        return int(self.group_file[group]), int(self.group_number[group])


def open_rows(
    source: str,
    split: Split,
    parts: Mapping[Part, Sequence[StoredFile]],
    store: Store,
    cache: Cache,
    wanted: TableColumns,
    unused: Unused,
) -> RowSource:
    """Open the images of the part ``split``, of training and validation if it is "all"; a part "test" is left out.

    Without a part "val", "train" is all that there is, and "val" raises DataError. Classes are those that the files
    name, numbers from 0, or the texts of the column in sorted order, of all parts together.
    """
    if split == "val" and "val" not in parts:
        raise no_validation_part(source)
    if "val" not in parts:
        split = "all"
    files = list_part_files(parts)

    def index_file(file: StoredFile) -> RowIndex:
        return read_row_index(store, cache, file, wanted)

    index_of = dict(zip(files, map_in_threads(index_file, files, _INDEXED_AT_ONCE), strict=True))
    chosen = list_part_files(parts, split)
    indexes = [index_of[file] for file in chosen]
    if not sum(len(index.names) for index in indexes):
        raise no_images(source, f"in {len(chosen)} files", unused)
    classes = _merge_classes(source, list(index_of.values()))
    labels = np.concatenate([_number_labels(index, classes) for index in indexes])
    labelled = bool((labels >= 0).all()) and bool(classes)
    rows = np.concatenate([index.rows for index in indexes])
    counts = {part: len(found) for part, found in parts.items()}
    shown = [f"{part} ({count:,})" for part, count in counts.items()] if len(counts) > 1 else []
    unit = "file" if len(chosen) == 1 else "files"
    kind = f"images in the rows of {len(chosen):,} {chosen[0].suffix[1:].capitalize()} {unit}"
    notes = [describe_layout(kind, shown, len(classes) if labelled else 0)]
    if not labelled and (labels >= 0).any():
        notes.append(f"labels are not used: {(labels >= 0).sum():,} of {len(labels):,} images have one")
    if unused:
        notes.append(unused.describe())
    return RowSource(
        files=tuple(file.address.removeprefix(LOCAL) for file in chosen),
        group=np.repeat(np.arange(len(rows)), rows),
        row=np.concatenate([np.arange(count) for count in rows.tolist()]),
        group_file=np.repeat(np.arange(len(chosen)), [len(index.rows) for index in indexes]),
        group_number=np.concatenate([np.arange(len(index.rows)) for index in indexes]),
        group_bytes=np.concatenate([index.sizes for index in indexes]),
        members=Names(chain.from_iterable(index.names for index in indexes)),
        labels=labels if labelled else None,
        classes=classes if labelled else (),
        split=split,
        reader=RowReader(store, cache, tuple(chosen), tuple(index.image for index in indexes)),
        notes=tuple(notes),
    )


def _merge_classes(source: str, indexes: Sequence[RowIndex]) -> tuple[str, ...]:
    """Return the names of the classes of all files; raises DataError if files name or number them differently."""
    named = {index.classes for index in indexes if index.classes}
    if len(named) > 1:
        raise DataError(f"data.source {source}: its files name their classes differently")
    if named:
        return named.pop()
    values = set(chain.from_iterable(index.values for index in indexes))
    if any(isinstance(value, str) for value in values):
        return tuple(sorted(map(str, values)))
    largest = max(map(int, values), default=UNLABELLED)
    return tuple(map(str, range(largest + 1)))


def _number_labels(index: RowIndex, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the labels (n,) of a file as numbers of ``classes``, -1 for a row that has none."""
    place = {name: number for number, name in enumerate(classes)}
    numbers = []
    for value in index.values:
        if isinstance(value, str):
            numbers.append(place.get(value, UNLABELLED))
        else:
            # a number is that of its class; negative ones mean that nobody knows
            numbers.append(value if 0 <= value < len(classes) else UNLABELLED)
    return np.array([*numbers, UNLABELLED])[index.labels]
