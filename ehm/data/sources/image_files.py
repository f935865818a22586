"""Find the image files in a folder, and account for those that look like images and are not read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ehm.data.decoding.decode import SUFFIXES
from ehm.data.sources.inventory import HIDDEN, OTHER_FORMAT, Unused, is_sample_file
from ehm.data.sources.parts import SampleFinder, is_folder
from ehm.errors import DataError

__all__ = ["IMAGES", "has_image_suffix", "list_hidden_images", "list_image_files", "read_suffixes"]

_suffixes: ContextVar[frozenset[str]] = ContextVar("suffixes of image files", default=SUFFIXES)


@contextmanager
def read_suffixes(suffixes: frozenset[str]) -> Iterator[None]:
    """Take files of these suffixes as images while sources are opened inside; photographs' are taken otherwise."""
    token = _suffixes.set(suffixes)
    try:
        yield
    finally:
        _suffixes.reset(token)


def list_image_files(root: Path, below: str = "", unused: Unused | None = None) -> Iterator[str]:
    """Yield the paths of images in the folder ``below`` of ``root``, relative to ``root``, sorted within each folder.

    A link to a folder above it is not followed. What looks like an image and is not read is counted in ``unused``.
    """
    yield from _walk_folder(root, below, frozenset(), Unused() if unused is None else unused)


def _walk_folder(root: Path, below: str, above: frozenset[tuple[int, int]], unused: Unused) -> Iterator[str]:
    try:
        status = os.stat(root / below)
        with os.scandir(root / below) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{root / below}: cannot be read: {error.strerror}") from None
    here = (status.st_dev, status.st_ino)
    # a link to a folder above would never end
    if here in above:
        return
    for entry in entries:
        path = os.path.join(below, entry.name)
        if entry.name.startswith("."):
            unused.add_all(HIDDEN, list_hidden_images(root, path))
        elif is_folder(entry):
            yield from _walk_folder(root, path, above | {here}, unused)
        elif has_image_suffix(entry.name):  # a link that leads nowhere too: the loader reports it
            yield path
        elif is_sample_file(entry.path):
            unused.add(OTHER_FORMAT, path)


def list_hidden_images(root: Path, path: str) -> Iterator[str]:
    """Yield the images in a hidden folder, or the hidden file if it is one. Links are not followed here."""
    if not os.path.isdir(root / path):
        if has_image_suffix(path):
            yield path
        return
    for folder_path, _, names in os.walk(root / path):
        for name in sorted(filter(has_image_suffix, names)):
            yield os.path.relpath(os.path.join(folder_path, name), root)


def has_image_suffix(name: str) -> bool:
    """Return whether a file of this name is read as an image."""
    return os.path.splitext(name)[1].lower() in _suffixes.get()


def _holds_images_directly(root: Path) -> bool:
    with os.scandir(root) as scan:
        images = [entry.path for entry in scan if has_image_suffix(entry.name) and not entry.name.startswith(".")]
    return any(map(os.path.isfile, images))


IMAGES = SampleFinder(
    below=lambda folder: next(list_image_files(folder), None) is not None,
    directly=_holds_images_directly,
)
"""The tests whether a folder holds images."""
