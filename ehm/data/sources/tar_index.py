"""Index the images in a tar file by WebDataset's naming, and keep the index for the next run.

The members of a sample share a name up to the first dot of its last component, and follow each other: ``dir/0001.jpg``,
``dir/0001.cls``, ``dir/0001.seg.png``. Its image is the first member whose suffix is that of an image alone (``.jpg``).
A sample without one may have a single image of a longer suffix (``IMG_1.2024.png`` is the image of sample ``IMG_1``).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.base import MOST_CLASSES, UNLABELLED
from ehm.data.sources.image_files import has_image_suffix
from ehm.data.sources.inventory import HIDDEN, OTHER_FORMAT, Unused, is_unread_suffix
from ehm.data.stores.cache import INDEX, lock_file
from ehm.data.stores.reader import BlockFile, StoreReader, name_version
from ehm.data.stores.store import StoredFile
from ehm.errors import DataError, WriteError
from ehm.storage.reading import describe_value
from ehm.storage.writing import replace_file

__all__ = ["TarIndex", "find_stored_index", "read_index", "read_stored_index", "split_member_name"]

FURTHER = "beside the image of their sample"
SEVERAL = "of samples with several images, none with a plain suffix (a sample's name ends at the first dot)"
WITHOUT_IMAGE = "of samples without an image"
LINKS = "stored as links, without bytes"

_VERSION = "v2"
_BUFFER = 1 << 16
"""Bytes that are read at a time: the headers of several small members lie in them."""
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True)
class TarIndex:
    """The images of one tar file: ``numbers`` (n, 3) are offset, size and label (-1: none), ``names`` the members.

    ``unused`` are the members that are not read, as rows of :class:`ehm.data.sources.inventory.Unused`.
    """

    numbers: NDArray[np.int64]
    names: list[str]
    unused: list[tuple[str, int, list[str]]]


def read_index(file: Path) -> TarIndex:
    """Return the index of a tar file from ``~/.cache/ehm``, or from its headers if it is new or has changed.

    Raises DataError if it cannot be read, or is no complete uncompressed tar file.
    """
    try:
        status = os.stat(file)
    except OSError as error:
        raise DataError(f"data.source: cannot read shard {file}: {error.strerror}") from None
    # a file that changes its content changes its size or its time
    identity = f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {_VERSION}"
    # what counts as an image decides what the index holds
    if has_image_suffix(".npy"):
        identity += " channels"
    cache = Path.home() / ".cache" / "ehm" / f"shard-{hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]}.npz"
    kept = _load_index(cache)
    if kept is not None:
        return kept
    try:
        with open(file, "rb") as stream:
            return _write_index(cache, str(file), stream)
    except OSError as error:
        raise _not_a_tar_file(str(file), error) from None


def read_stored_index(reader: StoreReader, file: StoredFile) -> TarIndex:
    """Return the index of a tar file in a store from the reader's cache, or from its headers if it is new.

    Reading the headers reads the whole file, unless its members are larger than the blocks of the cache, and fills the
    cache. Of several processes that need the index of a file, one reads it. Raises DataError as :func:`read_index`.
    """
    path = find_stored_index(reader, file)
    kept = _load_index(path)
    if kept is not None:
        return kept
    with lock_file(path.with_suffix(".lock")):
        kept = _load_index(path)
        if kept is not None:
            return kept
        with io.BufferedReader(BlockFile(reader, file), _BUFFER) as stream:
            return _write_index(path, file.address, stream)


def find_stored_index(reader: StoreReader, file: StoredFile) -> Path:
    """Return the path at which the index of a file in a store is kept, or will be."""
    kind = "-channels" if has_image_suffix(".npy") else ""
    return reader.cache.folder / INDEX / f"{name_version(file)}-{_VERSION}{kind}.npz"


def _load_index(path: Path) -> TarIndex | None:
    """Return a kept index, None if there is none yet or it is damaged."""
    try:
        with open(path, "rb") as kept, np.load(kept) as stored:
            numbers = stored["numbers"]
            names = os.fsdecode(stored["names"].tobytes()).split("\0")[: len(numbers)]
            unused = list(map(tuple, json.loads(stored["unused"].tobytes())))
            return TarIndex(numbers, names, unused)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_index(path: Path, name: str, stream: IO[bytes]) -> TarIndex:
    """Index the tar file ``name``, which is open as ``stream``, and keep the index at ``path``."""
    index = _index_members(name, stream)
    names_in_bytes = np.frombuffer(os.fsencode("\0".join(index.names)), dtype=np.uint8)
    unused_in_bytes = np.frombuffer(json.dumps(index.unused).encode(), dtype=np.uint8)
    # a full or read-only home only means reading the headers again next time
    with suppress(WriteError), replace_file(path, shared=True) as temporary:
        np.savez(temporary, numbers=index.numbers, names=names_in_bytes, unused=unused_in_bytes)
    return index


def split_member_name(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last component: ``a.b/0001.seg.PNG`` is a.b/0001 and .seg.png."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", (dot + suffix).lower()


@dataclass
class _Sample:
    """The members of one sample that matter here: images with a ``plain`` suffix or a ``longer`` one, and a label."""

    first: str
    plain: list[tarfile.TarInfo] = field(default_factory=list)
    longer: list[tarfile.TarInfo] = field(default_factory=list)
    label: int = UNLABELLED
    unread: list[str] = field(default_factory=list)


def _index_members(name: str, stream: IO[bytes]) -> TarIndex:
    unused = Unused()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            members = [member for member in tar if _is_part_of_a_sample(member, unused)]
            grouped = itertools.groupby(members, key=lambda member: split_member_name(member.name)[0])
            samples = [_read_sample(name, tar, group) for _, group in grouped]
    except (tarfile.TarError, OSError) as error:
        raise _not_a_tar_file(name, error) from None

    # masks such as 0001.seg.png lie beside images; where the image is missing, they do not take its place
    beside_images: set[str] = set()
    for sample in samples:
        if sample.plain:
            beside_images.update(map(_find_suffix, sample.longer))
    rows: list[tuple[int, int, int]] = []
    names: list[str] = []
    for sample in samples:
        image = _choose_image(sample, beside_images, unused)
        if image is not None:
            rows.append((image.offset_data, image.size, sample.label))
            names.append(image.name)
    return TarIndex(np.array(rows, dtype=np.int64).reshape(-1, 3), names, unused.rows())


def _not_a_tar_file(name: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"data.source: shard {name} is not a complete uncompressed tar file: {reason}")


def _is_part_of_a_sample(member: tarfile.TarInfo, unused: Unused) -> bool:
    """Return whether a member belongs to a sample; others that look like images are counted in ``unused``."""
    base = member.name.rpartition("/")[2]
    if member.isdir():
        return False
    if not member.isreg():
        if has_image_suffix(base):
            unused.add(LINKS, member.name)
        return False
    if base.startswith(".") or _META.match(member.name):
        if has_image_suffix(base):
            unused.add(HIDDEN, member.name)
        return False
    return "." in base  # a name without a dot has no suffix, and WebDataset passes it over too


def _read_sample(file: str, tar: tarfile.TarFile, members: Iterable[tarfile.TarInfo]) -> _Sample:
    members = list(members)
    sample = _Sample(members[0].name)
    for member in members:
        suffix = _find_suffix(member)
        if suffix in (".cls", ".json"):
            sample.label = max(sample.label, _read_label(file, tar, member))
        elif has_image_suffix(member.name):
            if "." in suffix[1:]:
                sample.longer.append(member)
            else:
                sample.plain.append(member)
        elif is_unread_suffix(suffix):
            sample.unread.append(member.name)
    return sample


def _choose_image(sample: _Sample, beside_images: set[str], unused: Unused) -> tarfile.TarInfo | None:
    """Return the image of a sample, or None if it has none or several that have the same claim."""
    image = None
    if sample.plain:
        image = sample.plain[0]
    elif len(sample.longer) == 1 and _find_suffix(sample.longer[0]) not in beside_images:
        image = sample.longer[0]
    others = [member.name for member in sample.plain + sample.longer if member is not image]
    if image is not None or len(others) == 1:
        unused.add_all(FURTHER, others)
    else:
        unused.add_all(SEVERAL, others)
    if image is None and not others:
        unused.add_all(OTHER_FORMAT, sample.unread)
        if not sample.unread:
            unused.add(WITHOUT_IMAGE, sample.first)
    return image


def _find_suffix(member: tarfile.TarInfo) -> str:
    return split_member_name(member.name)[1]


def _read_label(file: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    content = tar.extractfile(member)
    assert content is not None  # a regular file
    try:
        value = json.loads(content.read())
    except (ValueError, RecursionError):
        raise DataError(f"data.source: {file}/{member.name} is neither a class number nor JSON") from None
    if isinstance(value, dict):
        value = value.get("label")
    if not isinstance(value, int):
        return UNLABELLED
    if value >= MOST_CLASSES:
        raise DataError(f"data.source: {file}/{member.name}: {describe_value(value)} is no number of a class")
    return value
