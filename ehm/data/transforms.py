"""Transforms from an image to the pixels (H, W, C) of one sample, and what those of all tasks have in common.

:mod:`ehm.data.train_transform` draws crops at random, :mod:`ehm.data.eval_transform` cuts the centre. Normalisation
happens on the device: photographs travel as bytes, other images in their own depth. Photographs are Pillow's images in
RGB, all others are arrays (:mod:`ehm.data.channel_images`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from PIL import Image

from ehm.config.inputs import Interpolation
from ehm.config.pixel_format import RGB_BYTES, PixelFormat

__all__ = ["MAY_FLIP", "RESAMPLING", "Transform", "get_sample_dtype"]

RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
"""Pillow's filters, which smooth before they reduce."""
MAY_FLIP = "ehm_may_flip"
"""Key of an image's ``info``: False keeps training from mirroring it, for a question about left and right."""


class Transform(Protocol):
    """Makes a sample from what a source gives: an image, or an image and what belongs to it."""

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Height and width in pixels, and channels, of every sample; None if samples differ in size."""
        ...

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        """Return the sample: an array (H, W, channels) of :func:`get_sample_dtype` if there is a ``shape``."""
        ...


def get_sample_dtype(transform: Transform) -> np.dtype[Any]:
    """Return the type of the pixels of a transform's samples: bytes, unless its images are no photographs."""
    pixels: PixelFormat = getattr(transform, "pixels", RGB_BYTES)
    return pixels.dtype
