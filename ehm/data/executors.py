"""Readers of batches: this process, its threads, or worker processes that read ahead."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ehm.data.sampler import BatchPlan
from ehm.data.samples import LoadedBatch, Sample, SampleReader
from ehm.data.workers import WorkerPool
from ehm.processors import spread_thread

__all__ = ["Executor", "InProcess", "Processes", "Threads"]

_BATCHES_AHEAD = 2
"""Batches that threads read while the device computes, at least."""


class Executor(Protocol):
    """Reads the batches that it is given plans of, in their order."""

    def load_batches(self, plans: Iterator[BatchPlan]) -> Iterator[LoadedBatch]:
        """Yield the batch of each plan."""
        ...

    def close(self) -> None:
        """End whatever still reads."""
        ...


@dataclass(frozen=True)
class InProcess:
    """Reads each batch when it is asked for, in this process."""

    reader: SampleReader

    def load_batches(self, plans: Iterator[BatchPlan]) -> Iterator[LoadedBatch]:
        """See :class:`Executor`."""
        for plan in plans:
            if self.reader.transform.shape is None:
                samples = [self.reader.read_sample(index, plan.epoch) for index in plan.indices.tolist()]
                yield _join(samples)
                continue
            # written in place: to stack the samples afterwards would copy the batch once more
            images = np.empty((len(plan.indices), *self.reader.sample_shape), self.reader.sample_dtype)
            indices = plan.indices.copy()
            unreadable = self.reader.fill_rows(images, indices, plan.epoch)
            yield LoadedBatch(images, indices, unreadable)

    def close(self) -> None:
        """Do nothing: nothing reads ahead."""


@dataclass(frozen=True)
class Threads:
    """Reads ahead in ``count`` threads: Pillow lets them decode at once, and samples may differ in size."""

    reader: SampleReader
    count: int

    def load_batches(self, plans: Iterator[BatchPlan]) -> Iterator[LoadedBatch]:
        """See :class:`Executor`; the threads end with the iterator."""
        pending: deque[list[Future[Sample]]] = deque()
        pool = ThreadPoolExecutor(self.count, thread_name_prefix="data", initializer=spread_thread)
        try:
            for plan in plans:
                pending.append([pool.submit(self.reader.read_sample, i, plan.epoch) for i in plan.indices.tolist()])
                # batches of one image need more of them ahead, or some threads would have nothing to do
                ahead = max(_BATCHES_AHEAD, math.ceil(2 * self.count / max(1, len(plan.indices))))
                if len(pending) > ahead:  # or memory would fill with what nobody has asked for yet
                    yield _wait_for(pending.popleft())
            while pending:
                yield _wait_for(pending.popleft())
        finally:  # an iterator that is given up half-way comes here too
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Do nothing: threads end with the iterator that started them."""


class Processes:
    """Reads ahead in ``count`` worker processes, which fill arrays in shared memory.

    Samples have one shape. The workers start with the first batch and stay for later calls of ``load_batches``; every
    iterator that runs at the same time has workers of its own. ``rows`` is the number of images of the largest batch.
    """

    def __init__(self, reader: SampleReader, count: int, rows: int) -> None:
        self._reader = reader
        self._count = count
        self._rows = rows
        self._pools: list[WorkerPool] = []
        self._idle: list[WorkerPool] = []

    def load_batches(self, plans: Iterator[BatchPlan]) -> Iterator[LoadedBatch]:
        """See :class:`Executor`."""
        # workers of an earlier call are taken again: to start an interpreter costs more than a batch
        if not self._idle:
            pool = WorkerPool(self._count, self._reader, self._rows)
            self._idle.append(pool)
            self._pools.append(pool)
        pool = self._idle.pop()
        try:
            yield from pool.load_batches(plans)
        except BaseException:
            # also an iterator that is given up half-way: tasks are under way, and nobody wants their results
            pool.close()
            raise
        self._idle.append(pool)

    def close(self) -> None:
        """End the workers; a later call of ``load_batches`` starts new ones."""
        for pool in self._pools:
            pool.close()
        self._pools = []
        self._idle = []


def _wait_for(futures: Sequence[Future[Sample]]) -> LoadedBatch:
    return _join([future.result() for future in futures])


def _join(samples: Sequence[Sample]) -> LoadedBatch:
    """Return samples as a batch whose images are a tuple, because they differ in size or are no arrays."""
    values = []
    indices = []
    unreadable: dict[str, str] = {}
    for sample in samples:
        values.append(sample.value)
        indices.append(sample.index)
        unreadable |= sample.unreadable
    return LoadedBatch(tuple(values), np.array(indices, np.int64), unreadable)
