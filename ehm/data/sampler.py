"""The images of each batch, as a pure function of the seed and the number of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.base import Source
from ehm.errors import ConfigError, DataError

__all__ = ["BatchPlan", "Sampler", "repeat_to_multiple", "resolve_indices"]

_ORDER_STREAM = 1
"""Begins the seed of every shuffle, which keeps them apart from the random numbers of samples."""


@dataclass(frozen=True)
class BatchPlan:
    """The ``indices`` (n,) of the images that one process reads for a batch of ``epoch``."""

    epoch: int
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """Deals the images at ``indices``, in a new order for each epoch, into batches, and each batch to the ranks.

    With ``chances`` (n,), which add up to 1, an epoch is as many draws of these images as there are, each by its chance
    and independently of the others.
    Raises ConfigError if ``batch_size`` does not fit the ranks, and DataError if there are fewer images than ranks.
    """

    indices: NDArray[np.int64]
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    rank: int = 0
    world_size: int = 1
    chances: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise ConfigError(
                f"batch_size {self.batch_size} is not a positive multiple of the {self.world_size} processes"
            )
        if len(self.indices) < self.world_size:
            raise DataError(f"{len(self.indices)} images cannot be shared by {self.world_size} processes")

    @property
    def steps_per_epoch(self) -> int:
        """At least 1: a set that is smaller than a batch is one short batch, with ``drop_last`` too."""
        full_batches, rest = divmod(len(self.indices), self.batch_size)
        if self.drop_last:
            return max(full_batches, 1)
        return full_batches + bool(rest)

    def plan_batches(self, steps: Iterable[int]) -> Iterator[BatchPlan]:
        """Yield what this rank reads at each of the global ``steps``."""
        shuffled_epoch = -1
        order = self.indices
        for step in steps:
            epoch, number = divmod(step, self.steps_per_epoch)
            if self.shuffle and shuffled_epoch != epoch:
                # the order follows from the epoch alone, so that a resumed run finds it again
                rng = np.random.default_rng([_ORDER_STREAM, self.seed, epoch])
                if self.chances is None:
                    order = rng.permutation(self.indices)
                else:
                    order = rng.choice(self.indices, len(self.indices), p=self.chances)
                shuffled_epoch = epoch
            rows, _ = self.locate_rows(step)
            yield BatchPlan(epoch, order[number * self.batch_size :][rows])

    def locate_rows(self, step: int) -> tuple[slice, int]:
        """Return this rank's rows of the global batch of ``step``, and the number of rows of that batch."""
        start = step % self.steps_per_epoch * self.batch_size
        total = min(self.batch_size, len(self.indices) - start)
        if self.drop_last:
            # in training all ranks need equally many images, as the mean of their gradients counts each rank once
            total -= total % self.world_size
        first = total * self.rank // self.world_size
        end = total * (self.rank + 1) // self.world_size
        return slice(first, end), total


def resolve_indices(source: Source, subset: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return ``subset``, or the indices of all images of ``source`` if it is None; DataError if there are none."""
    indices = np.arange(len(source)) if subset is None else np.asarray(subset, dtype=np.int64)
    if not len(indices):
        raise DataError("there is nothing to load: the source, or the subset of it, is empty")
    return indices


def repeat_to_multiple(indices: NDArray[np.int64], world_size: int) -> NDArray[np.int64]:
    """Return ``indices``, and as many of the first ones again as give all ranks equally many.

    Models whose parameters are shared out need that: every rank takes part in each forward pass.
    """
    return np.resize(indices, math.ceil(len(indices) / world_size) * world_size)
