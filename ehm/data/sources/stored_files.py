"""Find the shards or Parquet files that an address means, and divide them into parts as files on this machine are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ehm.data.sources.image_files import has_image_suffix
from ehm.data.sources.inventory import Unused, is_unread_suffix, list_names
from ehm.data.sources.parts import PARTS, Part, match_parts, name_part
from ehm.data.sources.shard_files import divide_by_name, expand_pattern
from ehm.data.stores.store import Store, StoredFile, is_glob
from ehm.errors import DataError

__all__ = ["SUFFIXES", "find_stored_files"]

SUFFIXES = (".tar", ".parquet", ".arrow")
"""Suffixes of the files that are read from a store."""


def find_stored_files(source: str, store: Store, unused: Unused) -> dict[Part, list[StoredFile]]:
    """Return the files of each part, all of one kind; all are "train" if there are no parts.

    ``source`` is the address of a file, of a folder, a range of names (``shard-{000000..000012}.tar``) or a pattern
    with ``*``. What a folder holds besides is counted in ``unused``. Raises DataError if nothing is there.
    """
    if "{" in source:
        return {"train": _expand_range(source, store)}
    is_folder = not source.lower().endswith(SUFFIXES)
    if not is_folder and not is_glob(source):
        return {"train": [store.find_file(source)]}
    found = store.find_files(source)
    by_suffix: dict[str, list[StoredFile]] = {}
    for file in found:
        if file.suffix in SUFFIXES and not file.name.startswith("."):
            by_suffix.setdefault(file.suffix, []).append(file)
        elif has_image_suffix(file.name) or is_unread_suffix(file.name):
            unused.add("beside the shards", file.name)
    if len(by_suffix) > 1:
        kinds = " and ".join(by_suffix)
        raise DataError(f"data.source {source}: holds {kinds} files; name those to read by a pattern that ends in one")
    if not by_suffix:
        raise DataError(
            f"data.source {source}: no {', '.join(SUFFIXES)} files among the {len(found):,} files there; loose images "
            "are read from folders of this machine only"
        )
    files = next(iter(by_suffix.values()))
    return _divide(source, files) if is_folder else {"train": files}


def _expand_range(source: str, store: Store) -> list[StoredFile]:
    """Return the files that a range names; each of them has to be there."""
    addresses = list(expand_pattern(source))
    folder = addresses[0].rpartition("/")[0]
    listed: Mapping[str, StoredFile] = {}
    if not source.startswith(("http://", "https://")):  # web servers have no lists that could be trusted
        # one answer lists a thousand files, each of which would be a question
        listed = {file.address: file for file in store.find_files(f"{folder}/*")}
    return [listed.get(address) or store.find_file(address) for address in addresses]


def _divide(source: str, files: list[StoredFile]) -> dict[Part, list[StoredFile]]:
    """Return the files of each part, which is told by their folder or by their names."""
    by_folder: dict[str, list[StoredFile]] = {}
    for file in files:
        by_folder.setdefault(file.folder, []).append(file)
    folder_names = {folder.rpartition("/")[2]: folder for folder in by_folder}
    named = [name for name in folder_names if name_part(name) is not None]
    if not named or len(by_folder) == 1:
        return _order(divide_by_name(source, files))
    # a pattern without the suffix would be divided into parts again
    pattern = f"data.source={source.rstrip('/')}/**/*{files[0].suffix}"
    _refuse_repeated_parts(source, by_folder, pattern)
    others = [f"{name}/" for name in folder_names if name not in named]
    if others:
        raise DataError(
            f"data.source {source}: holds parts ({list_names([f'{name}/' for name in named])}) and other folders "
            f"({list_names(others)}); name the files to read by a pattern, for example {pattern}"
        )
    parts = {part: by_folder[folder_names[name]] for part, name in match_parts(source, named).items()}
    if "train" not in parts:
        raise DataError(
            f"data.source {source}: has {list_names([f'{name}/' for name in named])} and no part to train on; to read "
            f"one of them all the same, name it: data.source={source.rstrip('/')}/{named[0]}"
        )
    return _order(parts)


def _refuse_repeated_parts(source: str, folders: Iterable[str], pattern: str) -> None:
    """Raise DataError if two of ``folders`` have the same name, that of a part: only one of them would be read.

    ``pattern`` is the setting that reads all of them.
    """
    first_of: dict[str, str] = {}
    for folder in folders:
        name = folder.rpartition("/")[2]
        other = first_of.setdefault(name, folder)
        if other != folder and name_part(name) is not None:
            raise DataError(
                f"data.source {source}: holds {other} and {folder}, of which only one can be the part {name}; name the "
                f"folder above one of them, or the files to read by a pattern, for example {pattern}"
            )


def _order(parts: Mapping[Part, Sequence[StoredFile]]) -> dict[Part, list[StoredFile]]:
    return {part: list(parts[part]) for part in PARTS if part in parts}
