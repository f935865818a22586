"""The transform of training: a random resized crop and a flip, RandAugment and random erasing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config.inputs import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Means
from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.data.augment import RandAugment, RandomErasing, jitter_colors
from ehm.data.channel_images import resize_channels
from ehm.data.transforms import MAY_FLIP, RESAMPLING

__all__ = ["TrainTransform", "draw_resized_crop"]

_CROP_TRIES = 10
"""Boxes that are drawn until one fits, as in torchvision."""


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and flip, as MAE pretrains; RandAugment and random erasing for fine-tuning.

    - ``image_size`` is (height, width);
    - ``crop_scale`` is the range of the crop's share of the image's area;
    - ``flip`` mirrors half of the images, but none whose ``info`` says that it must not be (``MAY_FLIP``);
    - ``color_jitter`` is how far brightness, contrast and saturation may go from 1, as BEiT pretrains;
    - ``rand_augment`` is timm's string, for example ``rand-m9-mstd0.5-inc1``; raises ConfigError if it cannot be read;
    - ``random_erasing`` is a probability;
    - ``mean`` and ``std`` of the normalisation (of values 0 to 1) are the colours of what RandAugment uncovers and of
      the noise in erased rectangles;
    - ``interpolation`` resizes the crop;
    - ``pixels`` are the channels and the depth of images. Others than photographs take neither ``color_jitter`` nor
      ``rand_augment``, which a configuration refuses.
    """

    image_size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    color_jitter: float = 0.0
    rand_augment: str | None = None
    random_erasing: float = 0.0
    mean: Means = IMAGENET_MEAN
    std: Means = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    pixels: PixelFormat = RGB_BYTES

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every sample."""
        return (*self.image_size, self.pixels.count)

    def __post_init__(self) -> None:
        _ = self._augment  # a wrong string is an error here, not in a worker

    @cached_property
    def _augment(self) -> RandAugment | None:
        if self.rand_augment is None:
            return None
        red, green, blue = (min(255, round(255 * value)) for value in self.mean)
        return RandAugment(self.rand_augment, fill=(red, green, blue))

    def __call__(self, image: Any, rng: np.random.Generator) -> NDArray[Any]:
        """Return the sample (H, W, C) of an image of any size."""
        if isinstance(image, np.ndarray):
            return self._transform_channels(image, rng)
        may_flip = image.info.get(MAY_FLIP, True)
        top, left, crop_height, crop_width = draw_resized_crop(image.height, image.width, self.crop_scale, rng)
        crop = image.crop((left, top, left + crop_width, top + crop_height))
        height, width = self.image_size
        image = crop.resize((width, height), RESAMPLING[self.interpolation])
        # the order of the draws is part of what a seed means
        if self.flip and rng.random() < 0.5 and may_flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.color_jitter:
            image = jitter_colors(image, self.color_jitter, rng)
        if self._augment is not None:
            image = self._augment(image, rng)
        pixels = np.asarray(image)
        # last, as timm does after the normalisation: no other operation changes the noise
        if self.random_erasing:
            pixels = RandomErasing(self.random_erasing, self.mean, self.std)(pixels, rng)
        return pixels

    def _transform_channels(self, image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Return the sample of an image that is no photograph, by the same draws."""
        top, left, crop_height, crop_width = draw_resized_crop(image.shape[0], image.shape[1], self.crop_scale, rng)
        height, width = self.image_size
        box = (left, top, left + crop_width, top + crop_height)
        pixels = resize_channels(image, (width, height), RESAMPLING[self.interpolation], box)
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if self.random_erasing:
            pixels = RandomErasing(self.random_erasing, self.mean, self.std, self.pixels.white)(pixels, rng)
        return pixels


def draw_resized_crop(
    height: int,
    width: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draw a box (top, left, height, width) in an image of ``height`` x ``width``, by torchvision's RandomResizedCrop.

    Ten times, an area uniform in ``scale`` and an aspect ratio log-uniform in ``ratio`` are drawn (Szegedy et al.,
    2015) until the box fits; otherwise it is the largest central one of an aspect ratio that ``ratio`` admits.
    """
    area = height * width
    for _ in range(_CROP_TRIES):
        target_area = area * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width = round(math.sqrt(target_area * aspect))
        crop_height = round(math.sqrt(target_area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    # an image longer than any admitted crop gives the longest one
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = min(width, round(height * aspect))
    crop_height = min(height, round(width / aspect))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
