"""Account for files that look like images or samples and are not read: how many, why, and the first of their names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ehm.data.decoding.decode import SUFFIXES
from ehm.errors import DataError

__all__ = [
    "HIDDEN",
    "OTHER_FORMAT",
    "Unused",
    "describe_layout",
    "describe_parts",
    "escape_unprintable",
    "is_sample_file",
    "is_unread_suffix",
    "list_names",
    "no_images",
]

NAMED = 3
"""The number of files that are named for each reason."""
OTHER_FORMAT = "of a format that is not read"
HIDDEN = "hidden, or in hidden folders"

PICTURES = (
    "apng arw avif bpg cr2 cr3 dcm dds dicom dng emf eps exr fits hdr heic heif icns ico j2c j2k jp2 jpf jpx jxl mpo "
    "nef nii npy npz orf pam pbm pcx pef pfm psd qoi raf raw rw2 sgi svg svs tga wmf xbm xpm"
)
ARCHIVES = "7z arrow beton h5 hdf5 lmdb mdb parquet rar rec tar tbz2 tfrecord tfrecords tgz txz tzst zip"
UNREAD_SUFFIXES = frozenset(f".{suffix}" for suffix in f"{PICTURES} {ARCHIVES}".split())
"""Suffixes of files that may be meant as images or samples, and that no source of image files reads."""

_COMPRESSED = frozenset({".bz2", ".gz", ".xz", ".zst"})

_SIGNATURES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"GIF8",
    b"BM",
    b"II*\x00",  # TIFF
    b"MM\x00*",
)
"""First bytes of files in the formats that are read."""


class Unused:
    """Files that are not read, by the reason, in the order in which reasons came up."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count a file, or ``count`` of which ``name`` is the first; ``reason`` reads well behind their number."""
        self._counts[reason] = self._counts.get(reason, 0) + count
        names = self._names.setdefault(reason, [])
        if len(names) < NAMED:  # there may be millions of files
            names.append(name)

    def add_all(self, reason: str, names: Iterable[str]) -> None:
        """Count each of ``names``."""
        for name in names:
            self.add(reason, name)

    def merge(self, rows: Iterable[tuple[str, int, Sequence[str]]], folder: str = "") -> None:
        """Add ``rows`` as :meth:`rows` gave them; ``folder`` is put before their names."""
        for reason, count, names in rows:
            self._counts[reason] = self._counts.get(reason, 0) + count
            known = self._names.setdefault(reason, [])
            for name in names[: NAMED - len(known)]:
                known.append(folder + name)

    def rows(self) -> list[tuple[str, int, list[str]]]:
        """Return each reason with the number of its files and the first names, as plain values."""
        return [(reason, count, list(self._names[reason])) for reason, count in self._counts.items()]

    def describe(self) -> str:
        """Return a sentence such as "not used: 3 hidden, or in hidden folders (.a.png, …)"; empty if all are used."""
        if not self._counts:
            return ""
        groups = []
        for reason, count, names in self.rows():
            shown = list(map(escape_unprintable, names))
            if count > len(names):
                shown.append("…")
            groups.append(f"{count:,} {reason} ({', '.join(shown)})")
        return f"not used: {'; '.join(groups)}"


def no_images(source: str, place: str, unused: Unused) -> DataError:
    """Return the error for a source without images in ``place``, with the files that are not read."""
    kinds = " ".join(sorted(SUFFIXES))
    problem = f"no images {place} (looked for {kinds})"
    if unused:
        problem += f"; {unused.describe()}"
    return DataError(f"data.source {source}: {problem}")


def is_sample_file(path: str | Path) -> bool:
    """Return whether a file whose suffix is not read looks like an image or a sample all the same.

    Its suffix says so, or it has none (or one that follows an image's, as in ``a.jpg~`` or ``a.jpg?size=large``) and it
    begins as an image of a format that is read does.
    """
    name = os.path.basename(os.fspath(path)).lower()
    stem, suffix = os.path.splitext(name)
    inner_suffix = os.path.splitext(stem)[1]
    if is_unread_suffix(name):
        return True
    if suffix[1:].isalnum() and inner_suffix not in SUFFIXES:
        return False  # such as .txt or .xml: not opened, because there may be one for each image
    return _begins_like_an_image(path)


def is_unread_suffix(name: str) -> bool:
    """Return whether a name ends as an image or a set of samples in a format that is not read; compressed ones too."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in _COMPRESSED:
        inner_suffix = os.path.splitext(stem)[1]
        return inner_suffix in UNREAD_SUFFIXES or inner_suffix in SUFFIXES
    return suffix in UNREAD_SUFFIXES


def _begins_like_an_image(path: str | Path) -> bool:
    # a named pipe would be waited for until somebody writes into it
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(_SIGNATURES) or (head.startswith(b"RIFF") and head[8:] == b"WEBP")


def list_names(names: Sequence[str], most: int = 5) -> str:
    """Return the first ``most`` of ``names``, printable and with commas; "…" stands for the others."""
    shown = list(map(escape_unprintable, names[:most]))
    if len(names) > most:
        shown.append("…")
    return ", ".join(shown)


def escape_unprintable(name: str) -> str:
    """Return ``name`` with whatever cannot be printed (bytes that are no UTF-8, line ends) written as an escape."""
    printable = ""
    for character in name:
        printable += character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
    return printable


def describe_layout(kind: str, parts: Sequence[str], classes: int) -> str:
    """Return what was recognised, such as "folder with parts train, valid, test; 3 classes"."""
    divided = f" with parts {list_names(parts)}" if parts else ""
    if not classes:
        counted = "no classes"
    elif classes == 1:
        counted = "1 class"
    else:
        counted = f"{classes:,} classes"
    return f"{kind}{divided}; {counted}"


def describe_parts(counts: Mapping[str, int], kept: Sequence[str]) -> str:
    """Return how many images each part has; ``kept`` are the parts that are read only if the source names them."""
    each = ", ".join(f"{count:,} in {escape_unprintable(name)}/" for name, count in counts.items())
    if not kept:
        return f"images: {each}"
    return f"images: {each}; {list_names([f'{name}/' for name in kept])} is read only if data.source names it"
