"""Files behind an address: listed and read in ranges by fsspec; a read that fails is tried again.

fsspec knows the stores and their protocols, and reads many ranges at once. What it does not do alike for all stores is
done here: the length of each answer is compared, and failures are tried again with waits that double.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ehm.data.stores.addresses import hide_secrets
from ehm.errors import DataError
from ehm.installation import build_install_command
from ehm.storage.reading import shorten

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["FailedRead", "Range", "Store", "StoredFile", "is_glob"]

FIRST_WAIT = 0.5
"""Seconds before a read is tried again for the first time; each further wait is twice as long."""
_LONGEST_WAIT = 30.0
_CONNECT_SECONDS = 10
"""The longest wait for a connection; a server that is there answers within a second."""
_READ_SECONDS = 30
"""The longest silence of a server in the middle of an answer."""
_CONNECTIONS = 32
"""Ranges that one process reads at once from S3."""
_HOPELESS = 3
"""Failed reads in a row after which a read is tried only once, until one succeeds: the store is gone."""
_LONGEST_REASON = 200
"""Most characters of the message of a library that are shown: stores answer with whole documents."""
_VERSION_KEYS = (
    "ETag", "etag", "md5Hash", "generation", "blob_id", "sha", "content_md5", "version", "LastModified",
    "last_modified", "mtime", "modified", "updated", "created",
)  # fmt: skip
"""The names that stores give to the mark of a file's content, the most exact first."""
_EXTRAS = {
    "file": "tables",
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "hf": "hub,tables",
    "http": "web",
    "https": "web",
}
"""The extra of ehm that reads addresses of a scheme."""


class FailedRead(Exception):  # noqa: N818 - a result, which is raised only as a BrokenImage or DataError
    """A range that could not be read after all tries; the text is the reason."""


@dataclass(frozen=True)
class StoredFile:
    """A file in a store; ``version`` is another one if its content changes, as far as the store says so."""

    address: str
    size: int
    version: str

    @property
    def name(self) -> str:
        """The last component of the address."""
        return self.address.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The suffix of the name, in lower case."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def folder(self) -> str:
        """The address without the name."""
        return self.address.rpartition("/")[0]

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class Range:
    """The bytes ``start`` to ``end`` - 1 of a file."""

    file: StoredFile
    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.end - self.start


class Store:
    """The files behind addresses of one scheme; it can be sent to workers, each of which opens its own connections.

    A read that fails is tried again ``retries`` times.
    """

    def __init__(self, address: str, retries: int) -> None:
        self.address = address
        self.retries = retries
        self._opened: AbstractFileSystem | None = None
        self._failures_in_a_row = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "retries": self.retries, "_opened": None, "_failures_in_a_row": 0}

    @property
    def files(self) -> AbstractFileSystem:
        """fsspec's view of the store; DataError if the package for it is not installed."""
        if self._opened is None:
            self._opened = _open_file_system(self.address)
        return self._opened

    def find_files(self, pattern: str) -> list[StoredFile]:
        """Return the files that match ``pattern``, or those below it if it is a folder, sorted; DataError if it fails.

        A pattern has ``*`` or ``[01]`` as in a shell, and ``**`` for folders at any depth.
        """
        files = self.files
        path = files._strip_protocol(pattern)
        find = files.glob if is_glob(pattern) else files.find
        found: dict[str, Any] = self._ask(pattern, lambda: find(path, detail=True))
        described = []
        for name, info in sorted(found.items()):
            if info.get("type") != "directory" and not name.endswith("/"):
                described.append(self._describe(name, info))
        return described

    def find_file(self, address: str) -> StoredFile:
        """Return the file at ``address``; DataError if there is none."""
        path = self.files._strip_protocol(address)
        return self._describe(path, self._ask(address, lambda: self.files.info(path)))

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes | FailedRead]:
        """Return the bytes of each range, or why it could not be read after all tries."""
        results: list[bytes | FailedRead] = [FailedRead("was not read")] * len(ranges)
        waiting = list(range(len(ranges)))
        wait = FIRST_WAIT
        tries = 1 + self.retries if self._failures_in_a_row < _HOPELESS else 1
        for number in range(tries):
            if number:
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            again = []
            for place, answer in zip(waiting, self._read_once([ranges[place] for place in waiting]), strict=True):
                wanted = ranges[place].size
                if isinstance(answer, bytes) and len(answer) == wanted:
                    results[place] = answer
                    continue
                results[place] = FailedRead(_explain(answer, wanted, number + 1))
                if not isinstance(answer, FileNotFoundError | PermissionError):  # these stay as they are
                    again.append(place)
            waiting = again
            if not waiting:
                break
        self._failures_in_a_row = self._failures_in_a_row + 1 if waiting else 0
        return results

    def _read_once(self, ranges: Sequence[Range]) -> list[bytes | BaseException]:
        paths = [self.files._strip_protocol(wanted.file.address) for wanted in ranges]
        starts = [wanted.start for wanted in ranges]
        ends = [wanted.end for wanted in ranges]
        try:
            return list(self.files.cat_ranges(paths, starts, ends, on_error="return"))
        except Exception as error:  # of a connection that all ranges share
            return [error] * len(ranges)

    def _ask(self, address: str, question: Any) -> Any:
        """Return the answer to ``question`` about ``address``, asked again after failures that may pass."""
        wait = FIRST_WAIT
        for number in range(1 + self.retries):
            try:
                return question()
            except Exception as error:
                lasts = isinstance(error, FileNotFoundError | PermissionError)
                if lasts or number == self.retries:
                    raise DataError(f"data.source {address}: {_explain(error, 0, number + 1)}") from None
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
            self.files.invalidate_cache()

    def _describe(self, path: str, info: dict[str, Any]) -> StoredFile:
        marks = [str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None]
        size = info.get("size")
        address = self.files.unstrip_protocol(path)
        if size is None:
            raise DataError(f"data.source {address}: its server does not tell the size of the file")
        return StoredFile(address, int(size), marks[0] if marks else "")


def is_glob(pattern: str) -> bool:
    """Return whether an address is a pattern as a shell has them."""
    return "*" in pattern or "[" in pattern


def _open_file_system(address: str) -> AbstractFileSystem:
    scheme = address.partition("://")[0].rpartition("::")[2]
    remedy = build_install_command(_EXTRAS[scheme]) if scheme in _EXTRAS else "install the package that fsspec needs"
    try:
        import fsspec

        opened: AbstractFileSystem = fsspec.url_to_fs(address, **_choose_options(scheme))[0]
    except ImportError as error:
        raise DataError(f"data.source {address}: cannot read {scheme}:// here ({error}); {remedy}") from None
    except ValueError as error:
        raise DataError(f"data.source {address}: {hide_secrets(str(error))}") from None
    if hasattr(opened, "retries"):
        opened.retries = 1  # s3fs and gcsfs would try again for seconds before a failure is seen here
    return opened


def _choose_options(scheme: str) -> dict[str, Any]:
    """Return time limits for a scheme that would wait for minutes by itself; fsspec's own configuration goes before."""
    if scheme in ("s3", "s3a"):
        from fsspec.config import conf

        limits = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _READ_SECONDS,
            "max_pool_connections": _CONNECTIONS,
            "retries": {"max_attempts": 0},  # tries are counted here
        }
        return {"config_kwargs": limits | conf.get("s3", {}).get("config_kwargs", {})}
    if scheme in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
        return {"client_kwargs": {"timeout": timeout}}
    return {}


def _explain(answer: object, wanted: int, tries: int) -> str:
    """Return why ``answer`` is not what was wanted, in words that show no credential."""
    times = f" (tried {tries} times)" if tries > 1 else ""
    if isinstance(answer, bytes):
        return f"{len(answer):,} bytes came instead of {wanted:,}{times}"
    if isinstance(answer, FileNotFoundError):
        return "there is no such file"
    if isinstance(answer, PermissionError):
        return f"the store refuses access: {_describe_error(answer)}"
    if isinstance(answer, TimeoutError):
        return f"the store did not answer in time{times}"
    return f"{_describe_error(answer)}{times}"


def _describe_error(error: object) -> str:
    text = shorten(hide_secrets(str(error)), _LONGEST_REASON)
    name = type(error).__name__
    return f"{name}: {text}" if text else name
