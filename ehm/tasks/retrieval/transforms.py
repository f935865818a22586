"""Transforms of images for descriptors: complete images in their own proportions, or crops in a larger size."""

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
    """Reduces images (bicubic) to ``longest`` pixels at most, in their own proportions; smaller ones are unchanged.

    So does the published code of revisited Oxford and Paris (Radenovic et al., 2018) and of DELG (Cao et al., 2020).
    """

    longest: int
    shape: None = None

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """Return the sample (H, W, 3) of an RGB image of any size."""
        factor = self.longest / max(image.size)
        if factor < 1:  # the published code does not enlarge images either
            width = max(1, round(image.width * factor))
            height = max(1, round(image.height * factor))
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.array(image)


@dataclass(frozen=True)
class EnlargeTransform:
    """Crops the same region of an image as ``transform``, in another size (height, width).

    Descriptors at several scales are computed from the largest one, which this returns.
    """

    transform: EvalTransform
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every sample."""
        return (*self.size, 3)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """Return the sample (H, W, 3) of an RGB image of any size."""
        # in the same size the result has to be exactly that of transform, which exported bundles use
        if self.size == self.transform.image_size:
            return self.transform(image, rng)
        return np.asarray(self._enlarge(image))

    def _enlarge(self, image: Image.Image) -> Image.Image:
        """Crop and resize the region in one step, so that it is resized only once; padding has the fill colour."""
        image = self.transform.cut_long_image(image)
        height, width = self.transform.image_size
        (resized_width, resized_height), (left, top) = self.transform.find_layout(*image.size)

        # the part of the crop inside the resized image: first in pixels of that, then as a box in the original image
        first_x = max(left, 0)
        first_y = max(top, 0)
        last_x = min(left + width, resized_width)
        last_y = min(top + height, resized_height)
        x_scale = image.width / resized_width
        y_scale = image.height / resized_height
        box = (
            first_x * x_scale,
            first_y * y_scale,
            # rounding must not lead outside of the image
            min(last_x * x_scale, image.width),
            min(last_y * y_scale, image.height),
        )

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
