"""Tar shards in WebDataset's naming, read at random through an index; nothing is extracted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.data.decoding.channels import load_image
from ehm.data.sources.base import Names, Split
from ehm.data.sources.image_files import has_image_suffix
from ehm.data.sources.inventory import HIDDEN, OTHER_FORMAT, Unused, describe_layout, is_sample_file, no_images
from ehm.data.sources.parts import (
    PARTS,
    SPELLINGS,
    Part,
    SampleFinder,
    divide_by_layout,
    name_part,
    no_validation_part,
    visible_folders,
)
from ehm.data.sources.tar_index import UNLABELLED, TarIndex, read_index
from ehm.errors import BrokenImage, DataError

__all__ = ["ShardSource", "find_tar_files", "holds_shards", "is_pattern", "open_shards"]

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class ShardSource:
    """Images inside uncompressed tar files: for each, its shard, where its bytes lie and how many they are (n,)."""

    files: tuple[Path, ...]
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    members: Names
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    split: Split
    notes: tuple[str, ...] = ()
    pixels: PixelFormat = RGB_BYTES

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
        name = self.name(index)
        try:
            with open(self.files[self.shard[index]], "rb") as file:
                # opened each time: an open file would not survive the copy to a worker
                file.seek(self.offset[index])
                data = file.read(self.size[index])
        except OSError as error:
            raise BrokenImage(f"{name}: {error.strerror}") from None
        return load_image(BytesIO(data), self.pixels, name)

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
    parts = _find_parts(source, unused)
    if split == "val" and "val" not in parts:
        raise no_validation_part(source)
    if "val" not in parts:
        split = "all"
    files: list[Path] = []
    indexes: list[TarIndex] = []
    largest_label = UNLABELLED
    for part, found in parts.items():
        if part == "test":
            continue
        for file in found:
            index = read_index(file)
            # of every part, because all have the same classes
            largest_label = max(largest_label, int(index.numbers[:, 2].max(initial=UNLABELLED)))
            if split in ("all", part):
                files.append(file)
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
    notes = [describe_layout(f"{len(files):,} tar shards", _part_names(parts), len(class_names))]
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


def _find_parts(source: str, unused: Unused) -> dict[Part, list[Path]]:
    """Return the tar files of each part; all are "train" if there are no parts. What is passed over is counted."""
    if is_pattern(source):
        # read as named, whether there is such a file or not: a missing one is an error
        return {"train": [Path(file).expanduser() for file in _expand_pattern(source)]}
    division = divide_by_layout(source, "auto", TARS)
    if division.parts:
        parts = {part: find_tar_files(division.folder(part)) for part in division.parts}
    else:
        files = find_tar_files(division.root)
        if not files:
            raise DataError(f"data.source {source}: no .tar files in {division.root}")
        parts = _divide_by_name(source, files)
    used = set(chain.from_iterable(parts.values()))
    _count_passed_over(division.root, used, unused)
    for part_file in parts.get("test", []):
        unused.add("of the test part, which is read only if data.source names it", part_file.name)
    return parts


def _divide_by_name(source: str, files: list[Path]) -> dict[Part, list[Path]]:
    """Return the shards of each part by the words in their names; all are "train" if no name has such a word."""
    parts: dict[Part | None, list[Path]] = {}
    for file in files:
        words = re.split("[^a-z]+", file.stem.lower())
        named = {SPELLINGS[word] for word in words if word in SPELLINGS}
        # a name with words of two parts tells nothing
        part = named.pop() if len(named) == 1 else None
        parts.setdefault(part, []).append(file)
    if set(parts) in ({None}, {"train"}):
        return {"train": files}
    if None in parts or "train" not in parts:
        named_like_parts = next(found[0].name for part, found in parts.items() if part not in (None, "train"))
        others = "other shards are named like none" if None in parts else "no shard like a training part"
        raise DataError(
            f"data.source {source}: {named_like_parts} is named like a part that is kept for measuring, and {others}; "
            "name the shards to read by a pattern, for example data.source=FOLDER/shard-{000000..000012}.tar"
        )
    return {part: parts[part] for part in PARTS if part in parts}


def _part_names(parts: Mapping[Part, list[Path]]) -> list[str]:
    """Return the names of the parts with their numbers of shards, none if there is one part only."""
    if len(parts) == 1:
        return []
    return [f"{part} ({len(files):,})" for part, files in parts.items()]


def _count_passed_over(root: Path, used: Set[Path], unused: Unused) -> None:
    """Count the files in and below ``root`` that look like samples, besides the shards that are used."""
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(folder, name)
            if path in used:
                continue
            shown = str(path.relative_to(root))
            if name.startswith("."):
                if is_tar_name(name):
                    unused.add(HIDDEN, shown)
            elif is_tar_name(name):
                unused.add("in other folders", shown)
            elif has_image_suffix(name):
                unused.add("beside the tar files", shown)
            elif is_sample_file(path):
                unused.add(OTHER_FORMAT, shown)


def is_pattern(source: str) -> bool:
    """Return whether ``source`` names tar files rather than a folder."""
    return bool(_RANGE.search(source)) or source.lower().endswith(".tar")


def holds_shards(root: Path) -> bool:
    """Return whether a folder, or one of its parts, holds .tar files."""
    parts = filter(name_part, visible_folders(root))
    return _has_tar_files(root) or any(_has_tar_files(root / part) for part in parts)


def find_tar_files(root: Path) -> list[Path]:
    """Return the .tar files in a folder, sorted; hidden ones are left out."""
    if not root.is_dir():
        return []
    names = sorted(filter(is_tar_name, os.listdir(root)))
    return [root / name for name in names if not name.startswith(".")]


def is_tar_name(name: str) -> bool:
    """Return whether a file of this name is read as a shard."""
    return name.lower().endswith(".tar")


def _has_tar_files(folder: Path) -> bool:
    return bool(find_tar_files(folder))


TARS = SampleFinder(below=_has_tar_files, directly=_has_tar_files)
"""The tests whether a folder holds shards."""


def _expand_pattern(pattern: str) -> Iterator[str]:
    """Yield a-08.tar, a-09.tar, a-10.tar for ``a-{08..10}.tar``; the first bound's digits are the width."""
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        name = pattern[: found.start()] + str(number).zfill(len(found[1])) + pattern[found.end() :]
        yield from _expand_pattern(name)  # there may be another range behind it
