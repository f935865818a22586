"""A folder of bounded size that keeps parts of stored files; any number of processes share it.

    <folder>/usage                        the sum of the sizes of all entries, under a lock
    <folder>/<group>/in-use               locked by every process that reads files of the group
    <folder>/<group>/<file>/<entry>       one entry
    <folder>/index/                       indexes of files, which count for nothing and stay

A group is a folder of the store. An entry is written under another name and renamed, so that it is complete or not
there, also if its writer is killed. The system frees the locks of a process however it ends.

If there is no room, groups that no process uses are removed, those that were not used for longest first. Entries of a
group in use stay, and what does not fit is not kept: an epoch reads every image once, in random order, and if the cache
holds the share c of the images, entries that stay are found for the share c of the reads. Replacing the entries that
were not used for longest would find c^2/2, as most are replaced before the next epoch comes to them.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["INDEX", "Cache", "lock_file"]

INDEX = "index"
"""The name of the folder of indexes."""
_USAGE = "usage"
_IN_USE = "in-use"
_PARTIAL = ".partial-"
"""The beginning of the names of entries that are being written."""
_STALE_SECONDS = 3600
"""The age from which a partial entry is one of a writer that was killed."""
_RECOUNT_SECONDS = 60
"""The time from one look for groups to remove to the next, if there was nothing to remove."""
_FREE_ON_DISK = 1 << 30
"""Bytes that are left free on the disk of the folder, whatever the limit."""


class Cache:
    """The entries in ``folder``, of at most ``limit`` bytes together; 0 keeps nothing.

    The names of entries are paths of three components: group, file and entry. A folder that cannot be written to is
    one without room.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._locks: dict[str, int] = {}
        self._full_until = 0.0

    def __getstate__(self) -> dict[str, Any]:
        # locks belong to a process
        return {"folder": self.folder, "limit": self.limit, "_locks": {}, "_full_until": 0.0}

    @property
    def has_room(self) -> bool:
        """False for a while after an entry did not fit."""
        return self.limit > 0 and time.monotonic() >= self._full_until

    def find_room(self, wanted: int) -> int:
        """Return how many bytes there is room for, 0 if ``wanted`` do not fit even without idle groups."""
        if not self.has_room:
            return 0
        try:
            with self._locked_usage() as usage:
                if self._make_room(usage, wanted):
                    return self.limit - usage.total
        except OSError:
            pass  # of a folder that cannot be written to
        self._full_until = time.monotonic() + _RECOUNT_SECONDS
        return 0

    def read_part(self, name: str, start: int, size: int) -> bytes | None:
        """Return ``size`` bytes of an entry from ``start`` on, None if it is not kept."""
        if not self.limit:
            return None
        try:
            with open(self.folder / name, "rb") as file:
                data = os.pread(file.fileno(), size, start)
        except OSError:
            return None
        return data if len(data) == size else None

    def read_entry(self, name: str) -> bytes | None:
        """Return a whole entry, None if it is not kept."""
        try:
            return (self.folder / name).read_bytes() if self.limit else None
        except OSError:
            return None

    def keep(self, name: str, data: bytes) -> bool:
        """Keep an entry if there is room for it, and return whether it is kept; any OSError is one of no room."""
        if not self.has_room:
            return False
        path = self.folder / name
        try:
            self._lock_group(name.partition("/")[0])
            with self._locked_usage() as usage:
                if path.exists():
                    return True
                if not self._make_room(usage, len(data)):
                    self._full_until = time.monotonic() + _RECOUNT_SECONDS
                    return False
                # counted before it is written: a writer that is killed leaves a count that is too large, until the
                # entries are counted again
                usage.add(len(data))
            _write_entry(path, data)
        except OSError:
            self._full_until = time.monotonic() + _RECOUNT_SECONDS
            return False
        return True

    def claim(self, group: str) -> None:
        """Protect the entries of ``group`` from being removed for others, as long as this process lives.

        Nothing is kept, and so nothing is to be protected, in a folder that cannot be written to.
        """
        with suppress(OSError):
            self._lock_group(group)

    def _lock_group(self, group: str) -> None:
        if group in self._locks or not self.limit:
            return
        while True:
            path = self.folder / group / _IN_USE
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(lock, fcntl.LOCK_SH)
            os.utime(path)
            with suppress(OSError):
                if os.path.samestat(os.stat(path), os.fstat(lock)):
                    break
            os.close(lock)  # of a group that was removed just now
        self._locks[group] = lock

    def drop_other_versions(self, group: str, files: set[str]) -> None:
        """Remove the entries of earlier versions of ``files`` of a group, whose names begin alike up to "-"."""
        names = {name.partition("-")[0]: name for name in files}
        with suppress(OSError), self._locked_usage() as usage:
            for entry in os.scandir(self.folder / group):
                current = names.get(entry.name.partition("-")[0])
                if current is not None and entry.name != current:
                    usage.add(-_count_bytes(Path(entry.path)))
                    shutil.rmtree(entry.path, ignore_errors=True)

    def shrink(self) -> None:
        """Remove entries until the limit is kept, which may have been larger before; those in use come last."""
        with suppress(OSError), self._locked_usage() as usage:
            if usage.total <= self.limit or self._make_room(usage, 0):
                return
            for path in _list_entries(self.folder):
                if usage.total <= self.limit:
                    return
                usage.add(-path.stat().st_size)
                path.unlink(missing_ok=True)

    def _make_room(self, usage: _Usage, wanted: int) -> bool:
        """Return whether ``wanted`` bytes fit, for which groups that nobody uses are removed."""
        disk = shutil.disk_usage(self.folder)
        if usage.total + wanted <= self.limit and disk.free - wanted >= _FREE_ON_DISK:
            return True
        usage.recount()
        idle = sorted((path for path in self.folder.glob(f"*/{_IN_USE}")), key=lambda path: path.stat().st_mtime)
        for path in idle:
            free = shutil.disk_usage(self.folder).free
            if usage.total + wanted <= self.limit and free - wanted >= _FREE_ON_DISK:
                return True
            if path.parent.name not in self._locks:
                usage.add(-_remove_idle_group(path))
        free = shutil.disk_usage(self.folder).free
        return usage.total + wanted <= self.limit and free - wanted >= _FREE_ON_DISK

    @contextmanager
    def _locked_usage(self) -> Iterator[_Usage]:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / _USAGE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _Usage(self.folder, descriptor)
        finally:
            os.close(descriptor)  # which frees the lock


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold the lock ``path`` for the block: another process waits for it; nothing is locked if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Usage:
    """The number of bytes that the entries of a folder have together, kept in an open file that is locked."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._folder = folder
        self._descriptor = descriptor
        try:
            self.total = int(os.pread(descriptor, 32, 0))
        except ValueError:  # new
            self.recount()

    def add(self, change: int) -> None:
        """Change the number by ``change``."""
        self.total = max(0, self.total + change)
        os.pwrite(self._descriptor, b"%-31d\n" % self.total, 0)

    def recount(self) -> None:
        """Count all entries again, and remove what writers left that were killed."""
        self.total = 0
        self.add(_count_bytes(self._folder))


def _write_entry(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{_PARTIAL}{secrets.token_hex(6)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _list_entries(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        if parent == os.fspath(folder) and INDEX in folders:
            folders.remove(INDEX)
        for name in names:
            if name not in (_USAGE, _IN_USE):
                yield Path(parent, name)


def _count_bytes(folder: Path) -> int:
    total = 0
    for path in _list_entries(folder):
        with suppress(FileNotFoundError):
            status = path.stat()
            if path.name.startswith(_PARTIAL) and time.time() - status.st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)
                continue
            total += status.st_size
    return total


def _remove_idle_group(in_use: Path) -> int:
    """Remove the group of a lock file if no process holds its lock, and return how many bytes that frees."""
    lock = os.open(in_use, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        freed = _count_bytes(in_use.parent)
        shutil.rmtree(in_use.parent, ignore_errors=True)
        return freed
    except BlockingIOError:
        return 0
    finally:
        os.close(lock)
