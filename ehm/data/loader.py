"""Batches of images: deterministic, sharded over ranks, resumable at any step, decoded in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ehm.data.samples import Sampler, Samples, pool_of
from ehm.data.sources.base import Source
from ehm.data.transforms import Transform
from ehm.data.workers import Plan, Result, Workers

__all__ = ["Batch", "Loader"]


@dataclass(frozen=True)
class Batch:
    """``images`` (B, H, W, 3) C-contiguous, ``labels`` (B,) or None, and ``indices`` (B,) of the source.

    They are rows ``first`` to ``first + B`` of a global batch of ``total``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    indices: NDArray[np.int64]
    first: int
    total: int


class Loader:
    """Batches of ``source``, the same ones for the same (seed, step), whatever the number of workers.

    ``batch_size`` is that of the global batch; rank r of ``world_size`` takes the r-th part of it, so that the ranks
    together see the same batches as one process would. The last, short batch of an epoch is dropped with ``drop_last``,
    unless it is the only one, which is then cut to a multiple of ``world_size``; without ``drop_last`` its parts may
    differ in size by one. ``workers`` processes decode; 0 decodes here.
    ``subset`` are the indices to use (a fold), all if left out.

    A file that cannot be read is replaced by another one, drawn from (seed, epoch, index), and noted in ``broken``
    (file -> reason); with ``strict`` it raises BrokenImage. Raises DataError where there is nothing to load, where a
    hundred files in a row are broken and where a worker dies; ConfigError where ``batch_size`` does not fit.
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
    ) -> None:
        pool = pool_of(source, subset)
        self.broken: dict[str, str] = {}
        self._sampler = Sampler(pool, batch_size, seed, shuffle, drop_last, rank, world_size)
        self._samples = Samples(source, transform, pool, seed, strict)
        self._rows = min(batch_size // world_size, -(-len(pool) // world_size))
        self._count = workers
        self._workers: list[Workers] = []
        self._idle: list[Workers] = []

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, at least 1."""
        return self._sampler.steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the global steps ``start`` to ``stop`` - 1; the epoch of a step is step // steps_per_epoch.

        Workers start with the first batch, decode ahead over the ends of epochs, and wait for the next call when all
        batches have been taken.
        """
        steps = range(start, stop)
        plans = self._sampler.plans(steps)
        labels = self._samples.source.labels
        results = self._in_workers(plans) if self._count else map(self._here, plans)
        for step, (images, indices, broken) in zip(steps, results, strict=True):
            self.broken |= broken
            rows, total = self._sampler.rows(step)
            yield Batch(images, None if labels is None else labels[indices], indices, rows.start, total)

    def _here(self, plan: Plan) -> Result:
        epoch, indices = plan[0], plan[1].copy()
        images = np.empty((len(indices), *self._samples.transform.shape), np.uint8)
        broken = self._samples.fill(images, indices, epoch)
        return images, indices, broken

    def _in_workers(self, plans: Iterator[Plan]) -> Iterator[Result]:
        if not self._idle:
            self._idle.append(Workers(self._count, self._samples, self._rows))
            self._workers += self._idle
        workers = self._idle.pop()
        try:
            yield from workers.run(plans)
        except BaseException:  # also an iterator given up half-way: tasks are under way, and nobody wants their results
            workers.close()
            raise
        self._idle.append(workers)

    def close(self) -> None:
        """End the workers; a later call of ``batches`` starts new ones."""
        for workers in self._workers:
            workers.close()
        self._workers, self._idle = [], []

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
