"""Transforms of images to describe: whole, in their own proportions, or larger than the network takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data import EvalTransform
from ehm.data.transforms import RESAMPLING

__all__ = ["EnlargeTransform", "ShrinkTransform"]


@dataclass(frozen=True)
class ShrinkTransform:
    """Reduces images (bicubic) to ``longest`` pixels at most, proportions kept; smaller ones stay as they are.

    As the published codes of revisited Oxford and Paris (Radenovic et al., 2018) and of DELG (Cao et al., 2020) do.
    """

    longest: int
    shape: None = None

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """Return the sample (H, W, 3) of an RGB image of any size."""
        factor = self.longest / max(image.size)
        if factor < 1:  # neither of the published codes enlarges
            width = max(1, round(image.width * factor))
            height = max(1, round(image.height * factor))
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.array(image)


@dataclass(frozen=True)
class EnlargeTransform:
    """Shows the region of an image that ``transform`` shows, at another size (height, width).

    Descriptors at several scales are all computed from the largest of them.
    """

    transform: EvalTransform
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every sample."""
        return (*self.size, 3)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """Return the sample (H, W, 3) of an RGB image of any size."""
        # at its own size an image is prepared exactly as an exported bundle does it
        if self.size == self.transform.image_size:
            return self.transform(image, rng)
        return np.asarray(self._enlarge(image))

    def _enlarge(self, image: Image.Image) -> Image.Image:
        """Resize the region straight from the image, so that it is resized once; beyond the image lies its colour."""
        image = self.transform.shorten(image)
        height, width = self.transform.image_size
        (resized_width, resized_height), (left, top) = self.transform.layout(*image.size)

        # the part of the crop that lies inside the resized image, first in its pixels, then in those of the image
        first_x = max(left, 0)
        first_y = max(top, 0)
        last_x = min(left + width, resized_width)
        last_y = min(top + height, resized_height)
        x = image.width / resized_width
        y = image.height / resized_height
        box = (first_x * x, first_y * y, min(last_x * x, image.width), min(last_y * y, image.height))

        across = self.size[1] / width
        down = self.size[0] / height
        shown_width = max(1, round((last_x - first_x) * across))
        shown_height = max(1, round((last_y - first_y) * down))
        enlarged = image.resize((shown_width, shown_height), RESAMPLING[self.transform.interpolation], box=box)
        if (shown_width, shown_height) == (self.size[1], self.size[0]):
            return enlarged
        canvas = Image.new("RGB", (self.size[1], self.size[0]), self.transform.fill)
        canvas.paste(enlarged, (round((first_x - left) * across), round((first_y - top) * down)))
        return canvas
