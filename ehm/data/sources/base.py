"""Sources of numbered images with optional labels, which the loader reads; names of millions of files stay compact."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.data.decoding.channels import load_image

__all__ = ["MOST_CLASSES", "UNLABELLED", "FileSource", "Names", "Source", "Split", "StoredSource", "WithoutClasses"]

Split = Literal["all", "train", "val"]
MOST_CLASSES = 10_000_000
"""The first number that is no class: it is a mistake, such as the number of an image, and the names of so many classes,
which are numbered from 0, would fill the memory."""
UNLABELLED = -1
"""The label of an image that has none, in indexes of shards and rows."""


class Source(Protocol):
    """Numbered images. A source must be picklable: each worker process gets a copy."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class numbers (n,), or None without labels."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, empty without labels."""
        ...

    @property
    def split(self) -> Split:
        """The part of the data that this is; "all" if the data has no parts."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines to print before the source is read: the layout that was recognised, and the files that are not used."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> Any:
        """Read the image, with its mask or objects if a task needs them; BrokenImage names it and the reason.

        A photograph is Pillow's image in RGB; an image of other channels is an array (H, W, C).
        """
        ...

    def name(self, index: int) -> str:
        """Return the path of the image, for messages."""
        ...


@runtime_checkable
class StoredSource(Protocol):
    """A source whose images may lie in a store, where a read takes long to begin."""

    def fetch_ahead(self, indices: Sequence[int]) -> None:
        """Begin to read images, which ``load`` then waits for."""
        ...


class WithoutClasses:
    """The labels and the classes of a source that has none."""

    @property
    def labels(self) -> None:
        """None: its images have no classes."""
        return

    @property
    def classes(self) -> tuple[str, ...]:
        """Empty: its images have no classes."""
        return ()


class Names:
    """A list of strings in two arrays: a tenth of a Python list's memory, and quick to send to a worker."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = list(map(os.fsencode, names))  # names need not be UTF-8
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum(list(map(len, encoded)), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        # names lie one behind the other
        start = self._ends[index - 1] if index > 0 else 0
        return os.fsdecode(self._bytes[start : self._ends[index]])


@dataclass(frozen=True)
class FileSource:
    """Image files below ``root``, which are read for a model of ``pixels``."""

    root: Path
    files: Names
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    split: Split
    _: KW_ONLY
    notes: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()
    """Folders beside those of the classes that hold no image that is read."""
    pixels: PixelFormat = RGB_BYTES

    def __len__(self) -> int:
        return len(self.files)

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64], classes: tuple[str, ...]) -> FileSource:
        """Return the images at ``indices`` (n,) alone, with ``labels`` (n,) that number ``classes``."""
        files = Names(self.files[index] for index in indices.tolist())
        return replace(self, files=files, labels=labels, classes=classes, empty_classes=())

    def load(self, index: int) -> Any:
        """Read the image as :func:`ehm.data.decoding.channels.load_image`; BrokenImage has its path and the reason."""
        return load_image(self.name(index), self.pixels)

    def name(self, index: int) -> str:
        """Return the path of the file."""
        return os.path.join(self.root, self.files[index])
