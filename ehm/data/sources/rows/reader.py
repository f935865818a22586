"""Read single images out of groups of rows, which are unpacked into the cache when the first image of one is read.

Parquet gives the bytes of one row only by reading all of its group, tens of megabytes. In a shuffled epoch every group
is wanted about as often as it has rows, so an unpacked group is kept: the numbers of bytes at which its images end, and
behind them the images.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ehm.data.sources.rows.files import RowFile, open_row_file
from ehm.data.stores.cache import INDEX, Cache, lock_file
from ehm.data.stores.reader import name_entry
from ehm.data.stores.store import Store, StoredFile
from ehm.errors import BrokenImage, DataError

if TYPE_CHECKING:
    import pyarrow

__all__ = ["RowReader"]

_END_BYTES = 8
"""Bytes of each number that says where an image ends."""
_LOCKS = 64
"""Locks of a cache, one of which each group has while it is unpacked, so that not every process does the same."""


class RowReader:
    """Reads the column ``columns[i]`` of file i of ``files``; it is sent to workers without what it has opened."""

    def __init__(self, store: Store, cache: Cache, files: tuple[StoredFile, ...], columns: tuple[str, ...]) -> None:
        self.store = store
        self.cache = cache
        self.files = files
        self.columns = columns
        self._reset()

    def _reset(self) -> None:
        self._opened: dict[int, RowFile] = {}
        self._last: tuple[tuple[int, int], bytes] | None = None
        self._ahead: dict[tuple[int, int], Future[None]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "cache": self.cache, "files": self.files, "columns": self.columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def read(self, name: str, file: int, group: int, row: int) -> bytes:
        """Return the bytes of an image; raises BrokenImage with ``name`` and the reason."""
        try:
            data = self._read_row(file, group, row)
        except DataError as error:
            raise BrokenImage(f"{name}: {str(error).removeprefix('data.source: ')}") from None
        if not data:
            raise BrokenImage(f"{name}: the row has no image")
        return data

    def fetch_ahead(self, groups: Iterable[tuple[int, int]]) -> None:
        """Begin to unpack (file, group) that are not kept yet, in other threads."""
        if not self.cache.has_room:
            return
        for key in groups:
            if self.files[key[0]].suffix == ".arrow":
                continue
            if key not in self._ahead and self.cache.read_part(self._name_group(*key), 0, _END_BYTES) is None:
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(4, thread_name_prefix="store")
                self._ahead[key] = self._threads.submit(self._keep_group, *key)

    def _read_row(self, file: int, group: int, row: int) -> bytes:
        if self.files[file].suffix == ".arrow":
            value = self._open(file).read_column(group, self.columns[file])[row]
            return value.as_buffer().to_pybytes() if value.is_valid else b""
        ahead = self._ahead.pop((file, group), None)
        if ahead is not None:
            ahead.exception()  # whatever went wrong is tried once more below, where it is reported
        name = self._name_group(file, group)
        ends = self.cache.read_part(name, _END_BYTES * row, 2 * _END_BYTES)
        if ends is not None:
            start, end = np.frombuffer(ends, "<i8").tolist()
            kept = self.cache.read_part(name, start, end - start)
            if kept is not None:
                return kept
        with self._lock:
            last = self._last
        if last is None or last[0] != (file, group):
            last = ((file, group), self._unpack(file, group))
            with self._lock:
                self._last = last  # rows are often read in order when a model is measured
        start, end = np.frombuffer(last[1], "<i8", 2, _END_BYTES * row).tolist()
        return last[1][start:end]

    def _keep_group(self, file: int, group: int) -> None:
        self._unpack(file, group)  # and let go: many groups are read ahead, and they are large

    def _unpack(self, file: int, group: int) -> bytes:
        """Return a group unpacked, and keep it if there is room."""
        name = self._name_group(file, group)
        number = zlib.crc32(name.encode()) % _LOCKS
        with lock_file(self.cache.folder / INDEX / f"{number:02d}.lock"):
            kept = self.cache.read_entry(name)  # another process may have unpacked it meanwhile
            if kept is not None:
                return kept
            packed = _pack(self._open(file).read_column(group, self.columns[file]))
            self.cache.keep(name, packed)
            return packed

    def _open(self, file: int) -> RowFile:
        with self._lock:
            if file not in self._opened:
                self._opened[file] = open_row_file(self.store, self.files[file])
            return self._opened[file]

    def _name_group(self, file: int, group: int) -> str:
        return name_entry(self.files[file], f"{self.columns[file]}-{group:06d}")


def _pack(values: pyarrow.Array) -> bytes:
    """Return where each of the values begins and ends, as numbers of bytes from the beginning, and the values."""
    images = [value.as_buffer() if value.is_valid else b"" for value in values]
    ends = np.cumsum([_END_BYTES * (len(images) + 1), *map(len, images)], dtype="<i8")
    return b"".join([ends.tobytes(), *images])
