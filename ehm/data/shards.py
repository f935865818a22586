"""Tar shards in WebDataset's naming, read at random through an index; nothing is extracted.

A sample is the run of members that share a name up to the first dot: ``0001.jpg``, ``0001.cls``, ``0001.json``. The
index (shard, offset, size) is built once by reading the headers, and kept in ``~/.cache/ehm`` for the next run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.decode import SUFFIXES, decode
from ehm.data.folder import part_folders
from ehm.data.source import Names, Split
from ehm.errors import BrokenImage, DataError

__all__ = ["ShardSource", "holds_shards", "is_pattern", "shards"]

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_UNLABELLED = -1


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

    def __len__(self) -> int:
        return len(self.shard)

    def load(self, index: int) -> Image.Image:
        """The image in RGB; raises BrokenImage with its shard, its name and the reason."""
        name = self.name(index)
        try:
            with open(self.files[self.shard[index]], "rb") as file:
                file.seek(self.offset[index])
                data = file.read(self.size[index])
        except OSError as error:
            raise BrokenImage(f"{name}: {error.strerror}") from None
        return decode(BytesIO(data), name)

    def name(self, index: int) -> str:
        """The path of the shard and the name inside it."""
        return f"{self.files[self.shard[index]]}/{self.members[index]}"


def shards(source: str, split: Split) -> ShardSource:
    """All samples of ``source``, a folder of .tar files or a pattern such as ``shard-{000000..000012}.tar``.

    Labels are the integers in ``.cls``, or under "label" in ``.json``, if every sample has one; classes are called by
    their numbers. A folder that has ``train/`` and ``val/`` is divided into these, with the classes of both.
    """
    if is_pattern(source):
        files = every = [Path(file).expanduser() for file in _expand(source)]
        if split == "val":
            raise DataError(f"data.source {source}: has no validation part of its own (a folder val/ beside train/)")
        split = "all"
    else:
        parts, split = part_folders(source, split)
        files = [file for part in parts for file in _tar_files(part)]
        every = [file for part in part_folders(source, "all")[0] for file in _tar_files(part)]
        if not files:
            raise DataError(f"data.source {source}: no .tar files in {' or '.join(str(part) for part in parts)}")
    indexes = {file: _cached_index(file) for file in every}  # all parts: they have the same classes
    numbers = np.concatenate([indexes[file][0] for file in files])
    if not len(numbers):
        kinds = " ".join(sorted(SUFFIXES))
        raise DataError(f"data.source {source}: no images in {len(files)} tar files (looked for {kinds})")
    offset, size, labels = numbers.T.copy()
    labelled = bool((labels >= 0).all())
    classes = 1 + max(int(index[:, 2].max(initial=_UNLABELLED)) for index, _ in indexes.values())
    return ShardSource(
        files=tuple(files),
        shard=np.repeat(np.arange(len(files)), [len(indexes[file][1]) for file in files]),
        offset=offset,
        size=size,
        members=Names(name for file in files for name in indexes[file][1]),
        labels=labels if labelled else None,
        classes=tuple(str(label) for label in range(classes)) if labelled else (),
        split=split,
    )


def is_pattern(source: str) -> bool:
    """Whether ``source`` names tar files rather than a folder."""
    return bool(_RANGE.search(source)) or source.lower().endswith(".tar")


def holds_shards(root: Path) -> bool:
    """Whether a folder, or its train/, holds .tar files."""
    return bool(_tar_files(root) or _tar_files(root / "train"))


def _tar_files(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    names = (name for name in os.listdir(root) if name.lower().endswith(".tar") and not name.startswith("."))
    return [root / name for name in sorted(names)]


def _expand(pattern: str) -> Iterator[str]:
    """``a-{08..10}.tar`` -> a-08.tar, a-09.tar, a-10.tar; the first bound's digits are the width."""
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        yield from _expand(pattern[: found.start()] + str(number).zfill(len(found[1])) + pattern[found.end() :])


def _cached_index(file: Path) -> tuple[NDArray[np.int64], list[str]]:
    """(n, 3) offset, size and label, and names of the images in one shard; read again when the file has changed."""
    try:
        status = os.stat(file)
    except OSError as error:
        raise DataError(f"data.source: cannot read shard {file}: {error.strerror}") from None
    identity = f"{file.resolve()} {status.st_size} {status.st_mtime_ns} v1"
    cache = Path.home() / ".cache" / "ehm" / f"shard-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"
    try:
        with open(cache, "rb") as kept, np.load(kept) as stored:
            numbers, names = stored["numbers"], os.fsdecode(stored["names"].tobytes()).split("\0")
            return numbers, names[: len(numbers)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none yet, or damaged
    numbers, names = _index(file)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as partial:
            joined = np.frombuffer(os.fsencode("\0".join(names)), dtype=np.uint8)
            np.savez(Path(partial, cache.name), numbers=numbers, names=joined)
            os.replace(Path(partial, cache.name), cache)
    except OSError:
        pass  # a full or read-only home only means reading the headers again next time
    return numbers, names


def _index(file: Path) -> tuple[NDArray[np.int64], list[str]]:
    rows: list[tuple[int, int, int]] = []
    names: list[str] = []
    try:
        with tarfile.open(file, "r:") as tar:
            members = (member for member in tar if member.isreg() and not _is_hidden(member.name))
            for _, group in itertools.groupby(members, key=lambda member: _split_name(member.name)[0]):
                image, label = None, _UNLABELLED
                for member in group:
                    extension = _split_name(member.name)[1]
                    if extension in SUFFIXES and image is None:
                        image = member
                    elif extension in (".cls", ".json"):
                        label = max(label, _label(file, tar, member))
                if image is not None:
                    rows.append((image.offset_data, image.size, label))
                    names.append(image.name)
    except (tarfile.TarError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data.source: shard {file} is not a complete uncompressed tar file: {reason}") from None
    return np.array(rows, dtype=np.int64).reshape(-1, 3), names


def _split_name(name: str) -> tuple[str, str]:
    """``a/0001.seg.PNG`` -> a/0001, .seg.png."""
    folder, _, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return f"{folder}/{stem}", (dot + extension).lower()


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _label(file: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    content = tar.extractfile(member)
    assert content is not None  # a regular file
    try:
        value = json.loads(content.read())
    except (ValueError, RecursionError):
        raise DataError(f"data.source: {file}/{member.name} is neither a class number nor JSON") from None
    if isinstance(value, dict):
        value = value.get("label")
    return value if isinstance(value, int) else _UNLABELLED
