"""Sources in object stores and on servers, whatever scheme of address fsspec knows."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ehm.data.sources.base import Split
from ehm.data.sources.inventory import Unused
from ehm.data.sources.shards import ShardSource, make_shard_source
from ehm.data.sources.stored_files import find_stored_files
from ehm.data.sources.tar_index import TarIndex, read_stored_index
from ehm.data.stores.addresses import check_address
from ehm.data.stores.cache import Cache
from ehm.data.stores.reader import StoreReader, name_group, name_version
from ehm.data.stores.store import Store, StoredFile
from ehm.data.threads import in_threads

if TYPE_CHECKING:
    from ehm.config import ImageData

__all__ = ["open_stored"]

_GB = 10**9
_INDEXED_AT_ONCE = 16
"""Shards whose headers are read at the same time: most of the time goes by until a store answers."""


def open_stored(config: ImageData, split: Split) -> ShardSource:
    """Open the tar shards at the address ``config.source``, divided into parts as those in folders of this machine.

    What is read is kept in the folder ``config.cache_folder`` up to ``config.cache`` gigabytes. Raises DataError if
    nothing is there or the store cannot be read, ConfigError if the address holds a password.
    """
    source = config.source
    check_address(source)
    store = Store(source, config.retries)
    unused = Unused()
    parts = find_stored_files(source, store, unused)
    files = list(chain.from_iterable(found for part, found in parts.items() if part != "test"))
    cache = _open_cache(config, files)
    reader = StoreReader(store, cache, files)
    context = copy_context()  # has the suffixes of images, which threads do not inherit

    def index_file(file: StoredFile) -> TarIndex:
        return context.copy().run(read_stored_index, reader, file)

    indexes = dict(zip(files, in_threads(index_file, files, _INDEXED_AT_ONCE), strict=True))
    opened = make_shard_source(source, split, parts, indexes.__getitem__, unused)
    # by the numbers that the source gives the files of its part
    by_address = {file.address: file for file in files}
    chosen = [by_address[address] for address in opened.files]
    note = _describe_cache(cache, files)
    return replace(opened, reader=StoreReader(store, cache, chosen), notes=(*opened.notes, note))


def _open_cache(config: ImageData, files: Sequence[StoredFile]) -> Cache:
    """Open the cache of a configuration, in which earlier versions of ``files`` give their room to new ones."""
    folder = Path.home() / ".cache" / "ehm" / "stores" if config.cache_folder is None else Path(config.cache_folder)
    cache = Cache(folder.expanduser(), round(config.cache * _GB))
    versions: dict[str, set[str]] = {}
    for file in files:
        versions.setdefault(name_group(file), set()).add(name_version(file))
    for group, names in versions.items():
        cache.claim(group)
        cache.drop_other_versions(group, names)
    cache.shrink()
    return cache


def _describe_cache(cache: Cache, files: Sequence[StoredFile]) -> str:
    """Return a line that says how much of ``files`` the cache can hold."""
    total = sum(file.size for file in files)
    size = f"{len(files):,} files of {total / _GB:,.2f} GB in a store"
    if not cache.limit:
        return f"{size}; nothing is kept here (data.cache 0)"
    if total <= cache.limit:
        return f"{size}, kept in {cache.folder} once they are read"
    return f"{size}, of which up to {cache.limit / _GB:g} GB are kept in {cache.folder} (data.cache)"
