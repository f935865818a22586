"""Which images make up a batch, and how each becomes pixels: pure functions of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.base import Source
from ehm.data.transforms import Transform
from ehm.errors import BrokenImage, ConfigError, DataError

__all__ = ["Sampler", "Samples", "load", "pool_of"]

_ORDER, _SAMPLE = 1, 2  # keep the two families of random streams apart
_TRIES = 100


@dataclass(frozen=True)
class Sampler:
    """Deals ``pool``, an order of indices drawn anew for each epoch, into batches and these to ranks.

    ConfigError where ``batch_size`` does not fit, DataError where there are fewer images than ranks.
    """

    pool: NDArray[np.int64]
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise ConfigError(
                f"batch_size {self.batch_size} is not a positive multiple of the {self.world_size} processes"
            )
        if len(self.pool) < self.world_size:
            raise DataError(f"{len(self.pool)} images cannot be shared by {self.world_size} processes")

    @property
    def steps_per_epoch(self) -> int:
        """At least 1: a set smaller than a batch is one short batch, with ``drop_last`` too."""
        whole, rest = divmod(len(self.pool), self.batch_size)
        return max(whole, 1) if self.drop_last else whole + bool(rest)

    def plans(self, steps: Iterable[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Epoch and this rank's indices of each global step."""
        drawn, order = -1, self.pool
        for step in steps:
            epoch, number = divmod(step, self.steps_per_epoch)
            if self.shuffle and drawn != epoch:
                drawn, order = epoch, np.random.default_rng([_ORDER, self.seed, epoch]).permutation(self.pool)
            yield epoch, order[number * self.batch_size :][self.rows(step)[0]]

    def rows(self, step: int) -> tuple[slice, int]:
        """This rank's rows of the global batch of ``step``, and how many rows that has.

        With ``drop_last`` all ranks have equally many, as the mean of their gradients needs.
        """
        start = step % self.steps_per_epoch * self.batch_size
        total = min(self.batch_size, len(self.pool) - start)
        if self.drop_last:
            total -= total % self.world_size
        return slice(total * self.rank // self.world_size, total * (self.rank + 1) // self.world_size), total


def pool_of(source: Source, subset: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The indices that are loaded: ``subset``, or all of ``source``; DataError where there are none."""
    pool = np.arange(len(source)) if subset is None else np.asarray(subset, dtype=np.int64)
    if not len(pool):
        raise DataError("there is nothing to load: the source, or the subset of it, is empty")
    return pool


def load(
    source: Source, index: int, pool: NDArray[np.int64], rng: np.random.Generator, strict: bool
) -> tuple[Any, int, dict[str, str]]:
    """What ``source`` gives for image ``index`` or for the one in its place, the number of that, and what was broken.

    In place of a broken one another of ``pool`` is drawn; ``strict`` raises its BrokenImage instead. Raises DataError
    where 100 in a row are broken.
    """
    broken: dict[str, str] = {}
    for _ in range(_TRIES):
        try:
            return source.load(index), index, broken
        except BrokenImage as error:
            if strict:
                raise
            name, reason = source.name(index), str(error)
            broken[name] = reason.removeprefix(f"{name}: ")
            index = int(pool[rng.integers(len(pool))])
    raise DataError(f"{_TRIES} images in a row cannot be read, the last one {reason}")


@dataclass(frozen=True)
class Samples:
    """Reads and transforms the images of ``source``; one is made in the parent and sent to every worker.

    A broken image is replaced by another of ``pool`` that is drawn from (seed, epoch, index), so that the batch is the
    same whoever fills it; ``strict`` raises its BrokenImage instead.
    """

    source: Source
    transform: Transform
    pool: NDArray[np.int64]
    seed: int
    strict: bool

    def fill(self, images: NDArray[np.uint8], indices: NDArray[np.int64], epoch: int) -> dict[str, str]:
        """Write the images of ``indices`` (n,) into ``images`` (n, H, W, 3), and into ``indices`` what was read.

        Returns the broken files with their reasons. Raises DataError where 100 in a row are broken.
        """
        broken: dict[str, str] = {}
        for row, index in enumerate(indices.tolist()):
            images[row], indices[row], found = self.read(index, epoch)
            broken |= found
        return broken

    def read(self, index: int, epoch: int) -> tuple[NDArray[np.uint8], int, dict[str, str]]:
        """The pixels of image ``index`` or of the one in its place, the number of that, and what was broken."""
        rng = np.random.default_rng([_SAMPLE, self.seed, epoch, index])
        image, index, broken = load(self.source, index, self.pool, rng, self.strict)
        return self.transform(image, rng), index, broken
