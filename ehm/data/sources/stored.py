"""Sources that fsspec reads: in object stores and on servers, and Parquet and Arrow files on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ehm.console import console
from ehm.data.sources.base import Split
from ehm.data.sources.inventory import Unused
from ehm.data.sources.parts import Part, list_part_files
from ehm.data.sources.rows.files import LOCAL
from ehm.data.sources.rows.source import RowSource, open_rows
from ehm.data.sources.shards import ShardSource, make_shard_source
from ehm.data.sources.stored_files import find_stored_files
from ehm.data.sources.tar_index import TarIndex, find_stored_index, read_stored_index
from ehm.data.stores.addresses import check_address, is_address
from ehm.data.stores.cache import Cache
from ehm.data.stores.reader import StoreReader, name_group, name_version
from ehm.data.stores.store import Store, StoredFile
from ehm.data.threads import map_in_threads

if TYPE_CHECKING:
    from ehm.config import ImageData

__all__ = ["open_stored"]

_GB = 10**9
_TOLD_FROM = 10**8
"""Bytes of new shards from which it is said that their headers are read, since that takes a while."""
_INDEXED_AT_ONCE = 16
"""Shards whose headers are read at the same time: most of the time goes by until a store answers."""


def open_stored(config: ImageData, split: Split) -> ShardSource | RowSource:
    """Open the tar shards, Parquet or Arrow files at ``config.source``, divided into parts as shards in folders are.

    It is an address, or the path of Parquet or Arrow files on this machine. What is read is kept in the folder
    ``config.cache_folder`` up to ``config.cache`` gigabytes. Raises DataError if nothing is there or the store cannot
    be read, ConfigError if the address holds a password.
    """
    source = config.source
    check_address(source)
    address = source if is_address(source) else LOCAL + os.path.abspath(os.path.expanduser(source))
    store = Store(address, config.retries)
    unused = Unused()
    parts = find_stored_files(address, store, unused)
    files = list_part_files(parts)
    cache = _open_cache(config, files)
    opened: ShardSource | RowSource
    if files[0].suffix == ".tar":
        opened = _open_shards(source, split, parts, StoreReader(store, cache, files), unused)
    else:
        opened = open_rows(source, split, parts, store, cache, config.columns, unused)
    if not is_address(source):
        return opened
    return replace(opened, notes=(*opened.notes, _describe_cache(cache, files)))


def _open_shards(
    source: str, split: Split, parts: Mapping[Part, Sequence[StoredFile]], reader: StoreReader, unused: Unused
) -> ShardSource:
    new = [file for file in reader.files if not find_stored_index(reader, file).exists()]
    size = sum(file.size for file in new)
    if size >= _TOLD_FROM:
        console.print(
            f"  reading the headers of {len(new):,} shards ({_spell_size(size)}) in {source} for the first time"
        )
    context = copy_context()  # has the suffixes of images, which threads do not inherit

    def index_file(file: StoredFile) -> TarIndex:
        return context.copy().run(read_stored_index, reader, file)

    indexes = dict(zip(reader.files, map_in_threads(index_file, reader.files, _INDEXED_AT_ONCE), strict=True))
    opened = make_shard_source(source, split, parts, indexes.__getitem__, unused)
    # in the order in which the source numbers those of its part
    by_address = {file.address: file for file in reader.files}
    chosen = [by_address[address] for address in opened.files]
    return replace(opened, reader=StoreReader(reader.store, reader.cache, chosen))


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
    unit = "file" if len(files) == 1 else "files"
    size = f"{len(files):,} {unit} of {_spell_size(total)} in a store"
    if not cache.limit:
        return f"{size}; nothing is kept here (data.cache 0)"
    if total <= cache.limit:
        return f"{size}, kept in {cache.folder} once they are read"
    return f"{size}, of which up to {_spell_size(cache.limit)} are kept in {cache.folder} (data.cache)"


def _spell_size(size: int) -> str:
    """Return a number of bytes in gigabytes, or in megabytes if it is small."""
    return f"{size / _GB:,.1f} GB" if size >= _GB else f"{size / 10**6:,.1f} MB"
