"""Tar shards in WebDataset's naming, read at random through an index; nothing is extracted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.data.decoding.channels import load_image
from ehm.data.sources.base import UNLABELLED, Names, Split
from ehm.data.sources.inventory import Unused, describe_layout, no_images
from ehm.data.sources.parts import Part, no_validation_part
from ehm.data.sources.shard_files import F, find_shards
from ehm.data.sources.tar_index import TarIndex, read_index
from ehm.data.stores.reader import StoreReader
from ehm.errors import BrokenImage

__all__ = ["ShardSource", "make_shard_source", "open_shards"]


@dataclass(frozen=True)
class ShardSource:
    """Images inside uncompressed tar files: for each, its shard, where its bytes lie and how many they are (n,).

    ``files`` are paths, or addresses if ``reader`` reads them from a store.
    """

    files: tuple[str, ...]
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    members: Names
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    split: Split
    notes: tuple[str, ...] = ()
    pixels: PixelFormat = RGB_BYTES
    reader: StoreReader | None = None

    def __len__(self) -> int:
        return len(self.shard)

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64], classes: tuple[str, ...]) -> ShardSource:
        """Return the images at ``indices`` (n,) alone, with ``labels`` (n,) that number ``classes``."""
        return replace(
            self,
            shard=self.shard[indices],
            offset=self.offset[indices],
            size=self.size[indices],
            members=Names(self.members[index] for index in indices.tolist()),
            labels=labels,
            classes=classes,
        )

    def load(self, index: int) -> Any:
        """Read the image as :func:`ehm.data.decoding.channels.load_image`.

        Raises BrokenImage with its shard, its name and the reason.
        """
        data = self.read_bytes(index)
        return load_image(BytesIO(data), self.pixels, self.name(index))

    def read_bytes(self, index: int) -> bytes:
        """Return the image as it is stored; raises BrokenImage with its shard, its name and the reason."""
        if self.reader is not None:
            return self.reader.read(self.name(index), *self._locate(index))
        try:
            with open(self.files[self.shard[index]], "rb") as file:
                # opened each time: an open file would not survive the copy to a worker
                file.seek(self.offset[index])
                return file.read(self.size[index])
        except OSError as error:
            raise BrokenImage(f"{self.name(index)}: {error.strerror}") from None

    def fetch_ahead(self, indices: Sequence[int]) -> None:
        """Begin to read images from a store, which :meth:`load` then waits for; files on this machine need none."""
        if self.reader is not None:
            self.reader.fetch_ahead(map(self._locate, indices))

    def _locate(self, index: int) -> tuple[int, int, int]:
        return int(self.shard[index]), int(self.offset[index]), int(self.size[index])

    def name(self, index: int) -> str:
        """Return the path of the shard and the name inside it."""
        return f"{self.files[self.shard[index]]}/{self.members[index]}"


def open_shards(source: str, split: Split) -> ShardSource:
    """Open all samples of ``source``, a folder of .tar files or a pattern such as ``shard-{000000..000012}.tar``.

    Labels are the integers in ``.cls``, or under "label" in ``.json``, if every sample has one; classes are called by
    their numbers. A folder is divided into parts by its folders (:mod:`ehm.data.sources.parts`) or by the names of its
    shards (``set-train-000.tar``), with the classes of all. The test part is never read. A pattern takes what it names.
    """
    unused = Unused()
    parts = find_shards(source, unused)
    return make_shard_source(source, split, parts, read_index, unused)


def make_shard_source(
    source: str,
    split: Split,
    parts: Mapping[Part, Sequence[F]],
    index_file: Callable[[F], TarIndex],
    unused: Unused,
) -> ShardSource:
    """Make the source of the part ``split``, of training and validation if it is "all"; a part "test" is left out.

    Without a part "val", "train" is all that there is, and "val" raises DataError.
    """
    if split == "val" and "val" not in parts:
        raise no_validation_part(source)
    if "val" not in parts:
        split = "all"
    files: list[str] = []
    indexes: list[TarIndex] = []
    largest_label = UNLABELLED
    for part, found in parts.items():
        if part == "test":
            continue
        for file in found:
            index = index_file(file)
            # of every part, because all have the same classes
            largest_label = max(largest_label, int(index.numbers[:, 2].max(initial=UNLABELLED)))
            if split in ("all", part):
                files.append(str(file))
                indexes.append(index)
                unused.merge(index.unused, f"{file.name}/")
    numbers = np.concatenate([index.numbers for index in indexes])
    if not len(numbers):
        raise no_images(source, f"in {len(files)} tar files", unused)
    # contiguous arrays instead of views with gaps
    offset, size, labels = numbers.T.copy()
    labelled = bool((labels >= 0).all())
    classes = largest_label + 1
    class_names = tuple(map(str, range(classes))) if labelled else ()
    notes = [describe_layout(f"{len(files):,} tar shards", _list_parts(parts), len(class_names))]
    # labels of some samples alone train nothing
    if not labelled and (labels >= 0).any():
        notes.append(f"labels are not used: {(labels >= 0).sum():,} of {len(labels):,} samples have one")
    if unused:
        notes.append(unused.describe())
    return ShardSource(
        files=tuple(files),
        shard=np.repeat(np.arange(len(files)), [len(index.names) for index in indexes]),
        offset=offset,
        size=size,
        members=Names(chain.from_iterable(index.names for index in indexes)),
        labels=labels if labelled else None,
        classes=class_names,
        split=split,
        notes=tuple(notes),
    )


def _list_parts(parts: Mapping[Part, Sequence[object]]) -> list[str]:
    """Return the names of the parts with their numbers of shards, none if there is one part only."""
    if len(parts) == 1:
        return []
    return [f"{part} ({len(files):,})" for part, files in parts.items()]
