"""Samples made of a source's images, as a pure function of the seed, the epoch and the image's index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.base import Source, StoredSource
from ehm.data.transforms import Transform, get_sample_dtype
from ehm.errors import BrokenImage, DataError

__all__ = ["LoadedBatch", "Sample", "SampleReader"]

_SAMPLE_STREAM = 2
"""Begins the seed of every sample, which keeps its random numbers apart from those of the shuffles."""
_TRIES = 100
"""Unreadable images in a row after which a source counts as unreadable: of a few broken files, none is met so often."""
_ROWS_AHEAD = 32
"""Images that are read from a store at once."""


@dataclass(frozen=True)
class Sample:
    """The transformed image at ``index``; ``unreadable`` maps files that it stands in for to the reasons."""

    value: Any
    index: int
    unreadable: dict[str, str]


@dataclass(frozen=True)
class LoadedBatch:
    """The samples of a batch: one array (n, H, W, channels) or a tuple, the ``indices`` (n,) that were read, failures.

    ``unreadable`` maps the files that could not be read to the reasons.
    """

    images: Any
    indices: NDArray[np.int64]
    unreadable: dict[str, str]


@dataclass(frozen=True)
class SampleReader:
    """Reads and transforms images of ``source``; it is made in the parent and sent to every worker.

    An unreadable image is replaced by another one of ``pool``, drawn from (seed, epoch, index), so that the batch is
    the same whoever fills it; with ``strict`` its BrokenImage is raised instead.
    """

    source: Source
    transform: Transform
    pool: NDArray[np.int64]
    seed: int
    strict: bool

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every sample, if they have one shape."""
        assert self.transform.shape is not None
        return self.transform.shape

    @property
    def sample_dtype(self) -> np.dtype[Any]:
        """Type of the pixels of every sample."""
        return get_sample_dtype(self.transform)

    def read_sample(self, index: int, epoch: int) -> Sample:
        """Read and transform image ``index``, or another one in its place; DataError if 100 in a row are unreadable."""
        # a generator of its own: neither the batch nor the process that reads the image changes what is drawn
        rng = np.random.default_rng([_SAMPLE_STREAM, self.seed, epoch, index])
        unreadable: dict[str, str] = {}
        for _ in range(_TRIES):
            try:
                image = self.source.load(index)
            except BrokenImage as error:
                if self.strict:
                    raise
                name = self.source.name(index)
                reason = str(error)
                unreadable[name] = reason.removeprefix(f"{name}: ")  # the name is printed beside it
                index = int(self.pool[rng.integers(len(self.pool))])
            else:
                return Sample(self.transform(image, rng), index, unreadable)
        raise DataError(f"{_TRIES} images in a row cannot be read, the last one {reason}")

    def fetch_ahead(self, indices: Sequence[int]) -> None:
        """Begin to read the images at ``indices``, if they are in a store."""
        if isinstance(self.source, StoredSource):
            self.source.fetch_ahead(indices)

    def fill_rows(self, images: NDArray[Any], indices: NDArray[np.int64], epoch: int) -> dict[str, str]:
        """Write the samples of ``indices`` (n,) into ``images`` (n, H, W, channels); return files that are unreadable.

        ``indices`` are changed to those of the images that were read.
        """
        unreadable: dict[str, str] = {}
        wanted_indices = indices.tolist()
        for row, wanted in enumerate(wanted_indices):
            # far enough ahead that a store has answered by the time that the images are needed
            if row % _ROWS_AHEAD == 0:
                self.fetch_ahead(wanted_indices[row : row + 2 * _ROWS_AHEAD])
            sample = self.read_sample(wanted, epoch)
            images[row] = sample.value
            indices[row] = sample.index
            unreadable |= sample.unreadable
        return unreadable
