"""Random numbers for the masks of a batch: one stream for each mask.

The stream of a mask depends on the seed of the step, the image's row in the whole batch and the number of the view,
and on nothing else. So an image gets the same masks however many processes share the batch, and whatever the other
images of the batch are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["MaskStreams", "RandomNumbers"]


class MaskStreams:
    """The streams of the masks of some rows of a batch: ``views`` masks of each row, those of one row together."""

    def __init__(self, seed: Sequence[int], rows: range, views: int = 1) -> None:
        self._generators = []
        for row in rows:
            self._generators += [np.random.default_rng([*seed, row, view]) for view in range(views)]

    def __len__(self) -> int:
        return len(self._generators)

    def __getitem__(self, part: slice) -> MaskStreams:
        """Return some of the streams, which stay shared: numbers that one side draws are gone for the other."""
        chosen = MaskStreams((), range(0))
        chosen._generators = self._generators[part]
        return chosen

    def random(self, size: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw uniform numbers in [0, 1): row ``m`` of the result comes from stream ``m``.

        Raises ValueError if ``size[0]`` is not the number of streams.
        """
        if size[0] != len(self._generators):
            raise ValueError(f"size must begin with {len(self._generators)}, the number of streams, not {size[0]}")
        numbers = np.empty(size)
        for generator, row in zip(self._generators, numbers, strict=True):
            generator.random(out=row)
        return numbers


RandomNumbers: TypeAlias = np.random.Generator | MaskStreams
"""The source of the random numbers of masks: one generator for the whole batch, or a stream for each of its masks."""
