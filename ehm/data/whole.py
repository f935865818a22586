"""Whole images in their own proportions, one by one: what is measured without cutting anything off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.loader import Batch
from ehm.data.samples import Samples, pool_of
from ehm.data.sources.base import Source
from ehm.data.threads import in_threads

__all__ = ["Shrink", "WholeImages"]


@dataclass(frozen=True)
class Shrink:
    """Reduce (bicubic) to ``longest`` pixels at most, proportions kept; smaller images stay as they are.

    As the published codes of revisited Oxford and Paris (Radenovic et al., 2018) and of DELG (Cao et al., 2020) do.
    """

    longest: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """The largest of what comes out."""
        return (self.longest, self.longest, 3)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """An RGB image of any size -> (H, W, 3)."""
        factor = self.longest / max(image.size)
        if factor < 1:
            width, height = (max(1, round(side * factor)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.array(image)


class WholeImages:
    """A :class:`Loader` of one pass, in order, whose batches are single images, each as ``transform`` leaves it.

    ``threads`` read ahead. All ``world_size`` processes have equally many batches, as models in parts need; images that
    fill up are some of the first again, and a broken one is replaced as the loader does it: count by ``indices``.
    Raises as :class:`Loader` does.
    """

    def __init__(
        self,
        source: Source,
        transform: Shrink,
        *,
        threads: int,
        strict: bool = False,
        rank: int = 0,
        world_size: int = 1,
        subset: NDArray[np.int64] | None = None,
    ) -> None:
        pool = pool_of(source, subset)
        self.broken: dict[str, str] = {}
        self.steps_per_epoch = -(-len(pool) // world_size)
        self._numbers = np.resize(pool, self.steps_per_epoch * world_size)[rank::world_size]
        self._samples, self._threads = Samples(source, transform, pool, 0, strict), threads

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Images number ``start`` to ``stop`` - 1 of this process, each a batch (1, H, W, 3)."""
        labels = self._samples.source.labels
        read = partial(self._samples.read, epoch=0)
        for pixels, index, broken in in_threads(read, self._numbers[start:stop].tolist(), self._threads):
            self.broken |= broken
            indices = np.array([index])
            yield Batch(pixels[None], None if labels is None else labels[indices], indices, 0, 1)

    def close(self) -> None:
        """Nothing is left to end: threads go with their pass."""

    def __enter__(self) -> WholeImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
