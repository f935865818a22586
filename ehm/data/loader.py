"""Batches of images: deterministic, shared out to ranks, resumable at any step, and read ahead."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.executors import Executor, InProcess, Processes, Threads
from ehm.data.sampler import Sampler, resolve_indices
from ehm.data.samples import SampleReader
from ehm.data.sources.base import Source
from ehm.data.transforms import Transform

__all__ = ["Batch", "Loader"]


@dataclass(frozen=True)
class Batch:
    """``images`` of the source's ``indices`` (B,), and their ``labels`` (B,), or None if it has none.

    ``images`` is a C-contiguous array (B, H, W, channels) uint8, or a tuple of samples that differ in size.
    They are rows ``first`` to ``first + B`` of a global batch of ``total``.
    """

    images: Any
    labels: NDArray[np.int64] | None
    indices: NDArray[np.int64]
    first: int
    total: int


class Loader:
    """Batches of ``source``, the same ones for the same (seed, step), whoever reads them.

    ``batch_size`` is that of the global batch; rank r of ``world_size`` takes the r-th part of it, so that the ranks
    together see the same batches as one process would. With ``drop_last`` the last, short batch of an epoch is dropped,
    unless it is the only one, which is then cut to a multiple of ``world_size``; without ``drop_last`` its parts may
    differ in size by one. ``subset`` are the indices to use (a fold), all if left out. With ``chances``, one for each
    of them, a shuffled epoch draws images by these. ``labels`` are those of all images of the source, None if it has
    none.

    Samples of one ``transform.shape`` are stacked, and ``workers`` are processes that read ahead. If the shape is None
    the samples are kept apart, and the workers are threads, because samples that differ in size do not fit into shared
    memory that is laid out once. Without workers this process reads.

    A file that cannot be read is replaced by another one, drawn from (seed, epoch, index), and noted in ``unreadable``
    (file -> reason); with ``strict`` it raises BrokenImage. Raises DataError if there is nothing to load, if a hundred
    files in a row are unreadable or if a worker dies; ConfigError if ``batch_size`` does not fit.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        workers: int,
        strict: bool = False,
        rank: int = 0,
        world_size: int = 1,
        subset: NDArray[np.int64] | None = None,
        chances: NDArray[np.float64] | None = None,
    ) -> None:
        indices = resolve_indices(source, subset)
        self.unreadable: dict[str, str] = {}
        self.labels = source.labels
        self._sampler = Sampler(indices, batch_size, seed, shuffle, drop_last, rank, world_size, chances)
        reader = SampleReader(source, transform, indices, seed, strict)
        self._executor: Executor
        if workers == 0:
            self._executor = InProcess(reader)
        elif transform.shape is None:
            self._executor = Threads(reader, workers)
        else:
            # the shared memory has room for this rank's part of the largest batch
            most_rows = min(batch_size // world_size, math.ceil(len(indices) / world_size))
            self._executor = Processes(reader, workers, most_rows)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, at least 1."""
        return self._sampler.steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of the global steps ``start`` to ``stop`` - 1; step s is of epoch s // steps_per_epoch.

        What reads ahead does so over the ends of epochs too.
        """
        steps = range(start, stop)
        plans = self._sampler.plan_batches(steps)
        for step, loaded in zip(steps, self._executor.load_batches(plans), strict=True):
            self.unreadable |= loaded.unreadable
            rows, total = self._sampler.locate_rows(step)
            # of the images that were read, which are others than planned if files are unreadable
            labels = None if self.labels is None else self.labels[loaded.indices]
            yield Batch(loaded.images, labels, loaded.indices, rows.start, total)

    def list_indices(self, start: int, stop: int) -> list[int]:
        """Return the indices of the images that this rank is to read at the steps ``start`` to ``stop`` - 1."""
        indices: list[int] = []
        for plan in self._sampler.plan_batches(range(start, stop)):
            indices += plan.indices.tolist()
        return indices

    def close(self) -> None:
        """End what reads ahead; a later call of ``batches`` starts it again."""
        self._executor.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
