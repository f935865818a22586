"""Identify the images of a source wherever they lie: a source by its files' names, an image by its bytes.

n is the number of images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ehm.data.decoding.decode import open_binary
from ehm.data.sources.base import Source, StoredSource
from ehm.data.sources.coco import CocoSource
from ehm.data.sources.idx import IdxSource
from ehm.data.sources.mixture import MixedSource
from ehm.data.sources.pairs import PairSource
from ehm.data.sources.questions.mixture import MixedQuestions
from ehm.data.sources.questions.table import QuestionTable
from ehm.data.sources.rows.files import LOCAL
from ehm.data.sources.rows.source import RowSource
from ehm.data.sources.shards import ShardSource
from ehm.data.sources.table.source import TableSource
from ehm.data.stores.addresses import strip_scheme
from ehm.data.threads import map_in_threads
from ehm.errors import BrokenImage

__all__ = ["UNREADABLE", "KeyKind", "SourceIdentity", "hash_images", "identify_source", "is_far_away"]

T = TypeVar("T")
R = TypeVar("R")
KeyKind = Literal["content", "name"]
"""The kinds of keys: of an image's size and bytes, or of its file name and size."""
UNREADABLE = 0
"""The key of an image that cannot be read."""
_BLOCK = 4096
"""Bytes of a block: less is not read from a disk at a time."""
_BLOCKS = 64
"""Blocks that are read of a large file; a file of up to 256 KiB is read whole."""
_BATCH = 256
"""Files that a thread takes at once."""
_SAMPLE = 64
"""Images whose bytes are part of an identity."""


@dataclass(frozen=True)
class SourceIdentity:
    """The identity of a source, which is equal for sources of the same images, wherever they lie.

    ``files`` is the SHA-256 of the names and sizes of all images in their order, ``sample`` that of the bytes of some
    of them: uncompressed images often share names and sizes. ``labels`` is that of what belongs to the images: names
    and numbers of classes, masks, annotated objects, or questions and answers. ``groups`` is that of the groups which
    are not split, empty if there are none.
    """

    images: int
    files: str
    sample: str
    labels: str
    groups: str = ""


def identify_source(source: Source, threads: int = 0) -> SourceIdentity:
    """Return the identity of ``source``, for which only a few of its images are read.

    Names are relative to the deepest folder that holds all images: neither the spelling of the source's path matters
    nor where it was moved to.
    """
    if isinstance(source, MixedSource):
        return _join_identities(source, [identify_source(each, threads) for each in source.sources])
    names = list(map(source.name, range(len(source))))
    if isinstance(source, ShardSource | RowSource):
        sizes = source.size.tolist()  # known from the index
    elif isinstance(source, IdxSource):
        sizes = [source.image_bytes] * len(source)
    else:
        # once for each file: several questions may be about one image
        files = list(dict.fromkeys(names))
        size_of = dict(zip(files, _read_sizes(files, threads), strict=True))
        sizes = list(map(size_of.__getitem__, names))
    sampled = _spread_sample(len(source))
    if isinstance(source, StoredSource):
        source.fetch_ahead(sampled.tolist())
    keys = hash_images(source, sampled, "content", threads)
    sample = hashlib.sha256(keys.astype("<u8").tobytes()).hexdigest()
    labels = _hash_labels(source, threads)
    return SourceIdentity(len(source), _hash_names(names, sizes), sample, labels, _hash_groups(source))


def is_far_away(source: Source) -> bool:
    """Return whether the images of a source are in a store, from where none should be read without need."""
    if isinstance(source, RowSource):
        return not source.reader.store.address.startswith(LOCAL)
    return isinstance(source, ShardSource) and source.reader is not None


def hash_images(source: Source, indices: NDArray[np.int64], kind: KeyKind, threads: int = 0) -> NDArray[np.uint64]:
    """Return a key of 8 bytes for each image of ``indices`` (n,): (n,), UNREADABLE if it cannot be read.

    Images of the same bytes have the same ``content`` key, whatever their names, in folders and in tar files. If a file
    is larger than 256 KiB, its size counts and blocks that are spread evenly over it.
    """
    if isinstance(source, MixedSource):
        keys = np.zeros(len(indices), np.uint64)
        for place, rows in enumerate(source.split_indices(indices)):
            own = source.find_own_indices(place, indices[rows])
            keys[rows] = hash_images(source.sources[place], own, kind, threads)
        return keys
    if isinstance(source, QuestionTable | MixedQuestions):
        return _hash_question_images(source, indices, kind, threads)
    return _hash_each(source, indices, kind, threads)


def _hash_question_images(
    source: QuestionTable | MixedQuestions, indices: NDArray[np.int64], kind: KeyKind, threads: int
) -> NDArray[np.uint64]:
    """Return the keys of the images of questions, each of which is read once however many questions it has."""
    first_of: dict[str, int] = {}
    for index in indices.tolist():
        first_of.setdefault(source.name(index), index)
    keys = _hash_each(source, np.array(list(first_of.values()), np.int64), kind, threads)
    key_of = dict(zip(first_of, keys.tolist(), strict=True))
    return np.array([key_of[source.name(index)] for index in indices.tolist()], dtype=np.uint64)


def _hash_each(source: Source, indices: NDArray[np.int64], kind: KeyKind, threads: int) -> NDArray[np.uint64]:
    hash_image = _hash_content if kind == "content" else _hash_name
    hash_batch = partial(_map_batch, partial(hash_image, source))
    keys: list[int] = []
    for batch in map_in_threads(hash_batch, _split_batches(indices.tolist()), threads):
        keys += batch
    return np.array(keys, dtype=np.uint64)


def _join_identities(source: MixedSource, found: Sequence[SourceIdentity]) -> SourceIdentity:
    """Return the identity of several sources together: the digests of those of each."""
    joined = {}
    for field in ("files", "sample", "labels", "groups"):
        digests = [getattr(identity, field) for identity in found]
        # no groups stay none
        joined[field] = hashlib.sha256("\0".join(digests).encode()).hexdigest() if any(digests) else ""
    return SourceIdentity(len(source), **joined)


def _spread_sample(count: int) -> NDArray[np.int64]:
    """Return the numbers of the images whose bytes are part of an identity, spread evenly over ``count``."""
    return np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64))


def _hash_names(names: Sequence[str], sizes: Sequence[int]) -> str:
    names = list(map(strip_scheme, names))
    are_absolute = list(map(os.path.isabs, names))
    # A table may name files by both kinds of paths, which have no common folder. Other names stay as they are: those of
    # shards may begin with "./", and the identity is compared with the one of earlier versions.
    if any(are_absolute) and not all(are_absolute):
        names = list(map(os.path.abspath, names))
    folders = set(map(os.path.dirname, names))
    # relative to it, so that a copy elsewhere has the same identity
    common = len(os.path.commonpath(folders)) if folders else 0
    digest = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        relative = os.fsencode(name[common:].lstrip(os.sep))
        digest.update(b"%b\0%d\0" % (relative, size))  # no name contains a zero byte
    return digest.hexdigest()


def _hash_labels(source: Source, threads: int) -> str:
    digest = hashlib.sha256("\0".join(source.classes).encode())
    if source.labels is not None:
        digest.update(source.labels.astype("<i8").tobytes())
    if isinstance(source, TableSource) and source.targets is not None:
        digest.update(source.targets.tobytes())
    if isinstance(source, PairSource):
        masks = list(map(source.mask, range(len(source))))
        digest.update(_hash_names(masks, _read_sizes(masks, threads)).encode())
        for index in _spread_sample(len(masks)).tolist():
            digest.update(b"%d," % _hash_bytes(masks[index]))
        digest.update(b"%d" % source.zero_ignored)
    if isinstance(source, CocoSource):
        for objects in source.annotations:
            # masks are left out: they would take long, and go with the boxes
            described = [(each["category_id"], each["bbox"], each.get("iscrowd")) for each in objects]
            digest.update(repr(described).encode())
    if isinstance(source, QuestionTable | MixedQuestions):
        digest.update(source.fingerprint)
    return digest.hexdigest()


def _hash_groups(source: Source) -> str:
    if not isinstance(source, TableSource) or source.groups is None:
        return ""
    # numbered in the order of the images, as only the division matters and not what groups are called
    _, first, group_of = np.unique(source.groups, return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[group_of]
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()


def _read_sizes(paths: Sequence[str], threads: int) -> list[int]:
    """Return the sizes of files in bytes, -1 for one that is not there."""
    sizes: list[int] = []
    for batch in map_in_threads(partial(_map_batch, _read_size), _split_batches(paths), threads):
        sizes += batch
    return sizes


def _read_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _hash_name(source: Source, index: int) -> int:
    path = source.name(index)
    if isinstance(source, ShardSource | RowSource):
        size = int(source.size[index])
    elif isinstance(source, IdxSource):
        size = source.image_bytes
    else:
        size = _read_size(path)
    return _to_key(b"%b\0%d" % (os.fsencode(os.path.basename(path)), size))


def _hash_content(source: Source, index: int) -> int:
    if isinstance(source, RowSource):
        return _hash_stored(source, index)
    if isinstance(source, ShardSource):
        if source.reader is not None:
            return _hash_stored(source, index)
        shard = source.files[source.shard[index]]
        return _hash_bytes(shard, int(source.offset[index]), int(source.size[index]))
    if isinstance(source, IdxSource):
        return _to_key(b"%d\0" % source.image_bytes + source.images[index].tobytes())
    return _hash_bytes(source.name(index))


def _hash_stored(source: ShardSource | RowSource, index: int) -> int:
    """Return the key of an image in a store, the same as that of a file with its bytes."""
    try:
        data = source.read_bytes(index)
    except BrokenImage:
        return UNREADABLE
    parts = [b"%d\0" % len(data)]
    for start, length in _choose_blocks(len(data)):
        parts.append(data[start : start + length])
    return _to_key(b"".join(parts))


def _hash_bytes(path: str, offset: int = 0, size: int | None = None) -> int:
    """Return the key of ``size`` bytes of a file from ``offset`` on, of the whole file if None."""
    try:
        with open_binary(path) as file:
            if size is None:
                size = os.fstat(file.fileno()).st_size
            parts = [b"%d\0" % size]
            for start, length in _choose_blocks(size):
                file.seek(offset + start)
                parts.append(file.read(length))
    except OSError:
        return UNREADABLE
    return _to_key(b"".join(parts))


def _choose_blocks(size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the length of each block to read of ``size`` bytes."""
    if size <= _BLOCK * _BLOCKS:
        yield 0, size
        return
    for number in range(_BLOCKS):
        yield number * (size - _BLOCK) // (_BLOCKS - 1), _BLOCK  # from the very first to the very last byte


def _to_key(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _split_batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut ``items`` so that threads are not given work one file at a time."""
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def _map_batch(function: Callable[[T], R], batch: Sequence[T]) -> list[R]:
    return list(map(function, batch))
