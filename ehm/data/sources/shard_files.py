"""Find tar shards on this machine: in a folder, in those of its parts, or by a pattern of names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Set
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar

from ehm.data.sources.image_files import has_image_suffix
from ehm.data.sources.inventory import HIDDEN, OTHER_FORMAT, Unused, is_sample_file
from ehm.data.sources.parts import (
    PARTS,
    SPELLINGS,
    Part,
    SampleFinder,
    divide_by_layout,
    list_visible_folders,
    name_part,
)
from ehm.errors import DataError

__all__ = [
    "F",
    "divide_by_name",
    "expand_pattern",
    "find_shards",
    "find_tar_files",
    "holds_shards",
    "is_pattern",
    "is_tar_name",
]

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class _NamedFile(Protocol):
    """A file on this machine or in a store."""

    @property
    def name(self) -> str: ...

    @property
    def stem(self) -> str: ...


F = TypeVar("F", bound=_NamedFile)


def find_shards(source: str, unused: Unused) -> dict[Part, list[Path]]:
    """Return the tar files of each part; all are "train" if there are no parts. What is passed over is counted."""
    if is_pattern(source):
        # read as named, whether there is such a file or not: a missing one is an error
        return {"train": [Path(file).expanduser() for file in expand_pattern(source)]}
    division = divide_by_layout(source, "auto", TARS)
    if division.parts:
        parts = {part: find_tar_files(division.folder(part)) for part in division.parts}
    else:
        files = find_tar_files(division.root)
        if not files:
            raise DataError(f"data.source {source}: no .tar files in {division.root}")
        parts = divide_by_name(source, files)
    used = set(chain.from_iterable(parts.values()))
    _count_passed_over(division.root, used, unused)
    for part_file in parts.get("test", []):
        unused.add("of the test part, which is read only if data.source names it", part_file.name)
    return parts


def divide_by_name(source: str, files: list[F]) -> dict[Part, list[F]]:
    """Return the shards of each part by the words in their names; all are "train" if no name has such a word."""
    parts: dict[Part | None, list[F]] = {}
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
    parts = filter(name_part, list_visible_folders(root))
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


def expand_pattern(pattern: str) -> Iterator[str]:
    """Yield a-08.tar, a-09.tar, a-10.tar for ``a-{08..10}.tar``; the first bound's digits are the width.

    Raises DataError for a range that counts down, which names nothing.
    """
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    if int(found[1]) > int(found[2]):
        raise DataError(
            f"data.source {pattern}: the range {found[0]} is empty; the smaller number stands first: "
            f"{{{found[2]}..{found[1]}}}"
        )
    for number in range(int(found[1]), int(found[2]) + 1):
        name = pattern[: found.start()] + str(number).zfill(len(found[1])) + pattern[found.end() :]
        yield from expand_pattern(name)  # there may be another range behind it
