"""From an RGB image to the (H, W, 3) bytes of one sample, for training and for evaluation.

A transform is called with a PIL image in RGB and a NumPy generator, and has a ``shape``. Normalisation happens on
the device: images travel as uint8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.augment import RandAugment, RandomErasing, color_jitter

__all__ = ["EvalTransform", "TrainTransform", "Transform", "random_resized_crop_box"]

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Transform(Protocol):
    """What the loader applies to what a source gives: an image, or an image and what belongs to it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what comes out: height and width in pixels, and channels."""
        ...

    def __call__(self, image: Any, rng: np.random.Generator) -> NDArray[np.uint8]:
        """An RGB image of any size -> (H, W, 3); with a map of labels (H, W, 4), the map last."""
        ...


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop (bicubic) and flip, as MAE pretrains; RandAugment and random erasing for fine-tuning.

    ``image_size`` is (height, width); ``crop_scale`` the range of the crop's share of the image's area; ``flip`` a
    horizontal flip half of the time; ``color_jitter`` how far brightness, contrast and saturation may go from 1, as
    BEiT pretrains; ``rand_augment`` timm's string, for example ``rand-m9-mstd0.5-inc1``; ``random_erasing`` a
    probability; ``mean`` and ``std`` of the normalisation (of values 0 to 1) colour what
    RandAugment uncovers and the noise of erased rectangles. Raises ConfigError for a ``rand_augment`` it cannot read.
    """

    image_size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    color_jitter: float = 0.0
    rand_augment: str | None = None
    random_erasing: float = 0.0
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    @property
    def shape(self) -> tuple[int, int, int]:
        """See :class:`Transform`."""
        return (*self.image_size, 3)

    def __post_init__(self) -> None:
        _ = self._augment  # a wrong string is an error here, not in a worker

    @cached_property
    def _augment(self) -> RandAugment | None:
        if self.rand_augment is None:
            return None
        red, green, blue = (min(255, round(255 * value)) for value in self.mean)
        return RandAugment(self.rand_augment, fill=(red, green, blue))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        """An RGB image of any size -> (H, W, 3)."""
        height, width = self.image_size
        top, left, h, w = random_resized_crop_box(image.height, image.width, self.crop_scale, rng)
        image = image.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BICUBIC)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.color_jitter:
            image = color_jitter(image, self.color_jitter, rng)
        if self._augment is not None:
            image = self._augment(image, rng)
        pixels = np.asarray(image)
        if self.random_erasing:
            pixels = RandomErasing(self.random_erasing, self.mean, self.std)(pixels, rng)
        return pixels


@dataclass(frozen=True)
class EvalTransform:
    """Resize (bicubic) and crop the centre, as MAE evaluates; nothing is random.

    Up to 224 pixels the image is resized to 256/224 of ``image_size`` = (height, width), beyond that to ``image_size``
    itself: the shorter side of a square, and for other shapes the smallest size that covers them.
    """

    image_size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """See :class:`Transform`."""
        return (*self.image_size, 3)

    @property
    def cover(self) -> tuple[int, int]:
        """Height and width that the resized image just covers, before the crop."""
        height, width = self.image_size
        return (height, width) if max(height, width) > 224 else (int(height / 0.875), int(width / 0.875))

    def layout(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """For an image of that size: (width, height) that it is resized to, and (left, top) of the crop in that."""
        cover_h, cover_w = self.cover
        if width * cover_h < height * cover_w:
            size = (cover_w, height * cover_w // width)
        else:
            size = (width * cover_h // height, cover_h)
        return size, (round((size[0] - self.image_size[1]) / 2), round((size[1] - self.image_size[0]) / 2))

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """An RGB image of any size -> (H, W, 3)."""
        size, (left, top) = self.layout(*image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(image.crop((left, top, left + self.image_size[1], top + self.image_size[0])))


def random_resized_crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A box (top, left, h, w) in an image of ``height`` x ``width``, by torchvision's RandomResizedCrop.

    Ten times, an area uniform in ``scale`` and an aspect ratio log-uniform in ``ratio`` are drawn (Szegedy et al.,
    2015) until the box fits; otherwise it is the central one of all the image that ``ratio`` admits.
    """
    area = height * width
    for _ in range(10):
        target = area * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, round(height * aspect))
    h = min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w
