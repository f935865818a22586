"""Batches of images that differ in size, each with its objects: the same for the same (seed, step), decoded ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ehm.data.instances import Instances
from ehm.data.samples import Sampler, load, pool_of
from ehm.data.sources.coco import CocoSource

__all__ = ["ListBatch", "ListLoader", "mirrored"]

_SAMPLE = 3  # keeps its random streams apart from those of ehm.data.samples
_AHEAD = 2

Item = tuple[NDArray[np.uint8], Instances, int, dict[str, str]]


@dataclass(frozen=True)
class ListBatch:
    """``images``, each (H, W, 3), what is in each (``targets``), and ``indices`` (B,) of the source.

    They are rows ``first`` to ``first + B`` of a global batch of ``total``.
    """

    images: tuple[NDArray[np.uint8], ...]
    targets: tuple[Instances, ...]
    indices: NDArray[np.int64]
    first: int
    total: int


class ListLoader:
    """What :class:`ehm.data.Loader` is for images of one size: the same arguments, order, shares and ``broken``.

    ``flip`` mirrors half of the images. ``workers`` threads decode; Pillow lets them run at once. Raises as Loader.
    """

    def __init__(
        self,
        source: CocoSource,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        workers: int,
        flip: bool = False,
        strict: bool = False,
        rank: int = 0,
        world_size: int = 1,
        subset: NDArray[np.int64] | None = None,
    ) -> None:
        pool = pool_of(source, subset)
        self.broken: dict[str, str] = {}
        self._source, self._pool, self._seed, self._flip, self._strict = source, pool, seed, flip, strict
        self._sampler = Sampler(pool, batch_size, seed, shuffle, drop_last, rank, world_size)
        self._workers = workers

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, at least 1."""
        return self._sampler.steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[ListBatch]:
        """Batches of the global steps ``start`` to ``stop`` - 1; the epoch of a step is step // steps_per_epoch."""
        steps = range(start, stop)
        plans = self._sampler.plans(steps)
        items = self._in_threads(plans) if self._workers else map(self._here, plans)
        for step, each in zip(steps, items, strict=True):
            for _, _, _, broken in each:
                self.broken |= broken
            rows, total = self._sampler.rows(step)
            images, targets, indices, _ = zip(*each, strict=True) if each else ((), (), (), ())
            yield ListBatch(images, targets, np.array(indices, np.int64), rows.start, total)

    def close(self) -> None:
        """Nothing stays open: threads end with the iterator that started them."""

    def _here(self, plan: tuple[int, NDArray[np.int64]]) -> list[Item]:
        return [self._item(plan[0], index) for index in plan[1].tolist()]

    def _in_threads(self, plans: Iterator[tuple[int, NDArray[np.int64]]]) -> Iterator[list[Item]]:
        pending: deque[list[Future[Item]]] = deque()
        pool = ThreadPoolExecutor(self._workers)
        try:
            for epoch, indices in plans:
                pending.append([pool.submit(self._item, epoch, index) for index in indices.tolist()])
                if len(pending) > _AHEAD:
                    yield [future.result() for future in pending.popleft()]
            while pending:
                yield [future.result() for future in pending.popleft()]
        finally:  # also an iterator given up half-way
            pool.shutdown(cancel_futures=True)

    def _item(self, epoch: int, index: int) -> Item:
        """An image and its objects; in place of one that cannot be read another, drawn from (seed, epoch, index)."""
        rng = np.random.default_rng([_SAMPLE, self._seed, epoch, index])
        (image, objects), index, broken = load(self._source, index, self._pool, rng, self._strict)
        if self._flip and rng.random() < 0.5:
            image, objects = mirrored(image, objects)
        return image, objects, index, broken


def mirrored(image: NDArray[np.uint8], objects: Instances) -> tuple[NDArray[np.uint8], Instances]:
    """Left and right exchanged, in the image (H, W, 3) and in its objects."""
    boxes = objects.boxes.copy()
    boxes[:, [0, 2]] = image.shape[1] - objects.boxes[:, [2, 0]]
    masks = None if objects.masks is None else np.ascontiguousarray(objects.masks[:, :, ::-1])
    return np.ascontiguousarray(image[:, ::-1]), replace(objects, boxes=boxes, masks=masks)
