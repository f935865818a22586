"""Read parts of stored files from the local cache or, in whole blocks, from the store.

What a shuffled epoch costs is requests: each takes tens of milliseconds before its first byte comes, as long as a
megabyte takes to follow. While the cache has room, the block of 1 MiB around an image is fetched and kept, since its
other images are read later in the same epoch anyway. Once the cache is full, the bytes of an image alone are fetched:
the rest of its block would be thrown away.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

from ehm.data.stores.cache import Cache
from ehm.data.stores.store import FailedRead, Range, Store, StoredFile
from ehm.errors import BrokenImage, DataError

__all__ = ["BLOCK", "BlockFile", "RangeFile", "StoreReader", "name_entry", "name_group", "name_version"]

BLOCK = 1 << 20
"""Bytes of a block; the last one of a file is shorter."""
_MOST_AHEAD = 4096
"""Ranges that are read ahead, at most."""
_READ_AHEAD = 4
"""Blocks that are fetched at once while a file is read from its beginning to its end."""


class StoreReader:
    """Reads ranges of ``files`` by their numbers; it is sent to workers without what it has fetched."""

    def __init__(self, store: Store, cache: Cache, files: Sequence[StoredFile]) -> None:
        self.store = store
        self.cache = cache
        self.files = tuple(files)
        self._ahead: dict[tuple[int, int, int], tuple[Future[list[bytes | FailedRead]], int]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "cache": self.cache, "files": self.files, "_ahead": {}, "_threads": None}

    def read(self, name: str, file: int, start: int, size: int) -> bytes:
        """Return ``size`` bytes of a file from ``start`` on; raises BrokenImage with ``name`` and the reason."""
        key = (file, start, size)
        ahead = self._ahead.pop(key, None)
        if ahead is None:
            answer = self.read_ranges([self._range(key)])[0]
        else:
            answers, place = ahead
            answer = answers.result()[place]
        if isinstance(answer, FailedRead):
            raise BrokenImage(f"{name}: {answer}")
        return answer

    def fetch_ahead(self, keys: Iterable[tuple[int, int, int]]) -> None:
        """Begin to read (file, start, size) of ``keys`` in another thread, all at once; :meth:`read` waits for them."""
        keys = [key for key in dict.fromkeys(keys) if key not in self._ahead]
        if not keys:
            return
        if len(self._ahead) > _MOST_AHEAD:  # they were never read
            self._ahead.clear()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(2, thread_name_prefix="store")
        answers = self._threads.submit(self.read_ranges, list(map(self._range, keys)))
        for place, key in enumerate(keys):
            self._ahead[key] = (answers, place)

    def _range(self, key: tuple[int, int, int]) -> Range:
        file, start, size = key
        return Range(self.files[file], start, start + size)

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes | FailedRead]:
        """Return the bytes of each range, or why it cannot be read."""
        pieces = [_split_blocks(wanted) for wanted in ranges]
        found: dict[Range, bytes | FailedRead] = {}
        missing: list[Range] = []
        for piece in chain.from_iterable(pieces):
            block = _find_block(piece)
            kept = self.cache.read_part(_name_block(block), piece.start - block.start, piece.end - piece.start)
            if kept is not None:
                found[piece] = kept
            else:
                missing.append(piece)
        to_fetch = self._choose_ranges(missing)
        fetched = self._fetch(list(dict.fromkeys(to_fetch.values())))
        for piece, larger in to_fetch.items():
            data = fetched[larger]
            if isinstance(data, bytes):
                data = data[piece.start - larger.start : piece.end - larger.start]
            found[piece] = data
        return [_join([found[piece] for piece in parts]) for parts in pieces]

    def _choose_ranges(self, pieces: Sequence[Range]) -> dict[Range, Range]:
        """Return for each piece the range to fetch: its block as long as there is room for blocks, then itself."""
        if not pieces:
            return {}
        room = self.cache.find_room(_find_block(pieces[0]).size)
        chosen: dict[Range, Range] = {}
        blocks: set[Range] = set()
        for piece in pieces:
            block = _find_block(piece)
            if block not in blocks and room >= block.size:
                blocks.add(block)
                room -= block.size
            chosen[piece] = block if block in blocks else piece
        return chosen

    def _fetch(self, ranges: Sequence[Range]) -> dict[Range, bytes | FailedRead]:
        """Return ranges from the store, and keep those that are whole blocks."""
        if not ranges:
            return {}
        fetched = dict(zip(ranges, self.store.read_ranges(ranges), strict=True))
        for wanted, data in fetched.items():
            if isinstance(data, bytes) and wanted == _find_block(wanted):
                self.cache.keep(_name_block(wanted), data)
        return fetched


class RangeFile(io.RawIOBase):
    """A stored file to read and to seek in, for libraries that take an open file; DataError if a read fails."""

    def __init__(self, store: Store, file: StoredFile) -> None:
        self._store = store
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as files do."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """Return the place."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into ``buffer`` and return the number of bytes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._file.size - self._position)
        if size <= 0:
            return 0
        part = self._read_at(self._position, size)
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _read_at(self, start: int, size: int) -> bytes:
        return _require(self._file, self._store.read_ranges([Range(self._file, start, start + size)])[0])


class BlockFile(RangeFile):
    """A stored file that is read in blocks of the cache, several at once if one follows the other."""

    def __init__(self, reader: StoreReader, file: StoredFile) -> None:
        super().__init__(reader.store, file)
        self._reader = reader
        self._blocks: dict[int, bytes] = {}
        self._last = -2

    def _read_at(self, start: int, size: int) -> bytes:
        """Return up to ``size`` bytes of the block at ``start``."""
        number, within = divmod(start, BLOCK)
        return self._load_block(number)[within : within + size]

    def _load_block(self, number: int) -> bytes:
        if number not in self._blocks:
            count = _READ_AHEAD if number == self._last + 1 else 1
            ranges = []
            for start in range(number * BLOCK, min((number + count) * BLOCK, self._file.size), BLOCK):
                ranges.append(Range(self._file, start, min(start + BLOCK, self._file.size)))
            self._blocks.clear()
            for place, data in enumerate(self._reader.read_ranges(ranges)):
                self._blocks[number + place] = _require(self._file, data)
        self._last = number
        return self._blocks[number]


def _require(file: StoredFile, data: bytes | FailedRead) -> bytes:
    if isinstance(data, FailedRead):
        raise DataError(f"data.source: {file}: {data}")
    return data


def name_group(file: StoredFile) -> str:
    """Return the name of the cache's group of a file, that of its folder."""
    return _hash(file.folder, 16)


def name_entry(file: StoredFile, entry: str) -> str:
    """Return the name of an entry of the cache that belongs to a file as it is now."""
    return f"{name_group(file)}/{name_version(file)}/{entry}"


def name_version(file: StoredFile) -> str:
    """Return a name for a file as it is now: that of the file, "-", and that of its content."""
    return f"{_hash(file.address, 16)}-{_hash(f'{file.size} {file.version}', 12)}"


def _name_block(block: Range) -> str:
    return name_entry(block.file, f"{block.start // BLOCK:06d}")


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:digits]


def _find_block(piece: Range) -> Range:
    """Return the block that a range within one block lies in."""
    start = piece.start // BLOCK * BLOCK
    return Range(piece.file, start, min(start + BLOCK, piece.file.size))


def _split_blocks(wanted: Range) -> list[Range]:
    """Cut a range where blocks end."""
    pieces = []
    start = wanted.start
    while start < wanted.end:
        end = min(wanted.end, (start // BLOCK + 1) * BLOCK)
        pieces.append(Range(wanted.file, start, end))
        start = end
    return pieces


def _join(pieces: Sequence[bytes | FailedRead]) -> bytes | FailedRead:
    """Return the pieces as one, or the first failure among them."""
    parts = []
    for piece in pieces:
        if isinstance(piece, FailedRead):
            return piece
        parts.append(piece)
    return b"".join(parts)
