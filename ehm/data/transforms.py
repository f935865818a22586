"""From an RGB image to the (H, W, 3) bytes of one sample, for training and for evaluation.

A transform is called with a PIL image in RGB and a NumPy generator, and has a ``shape``. Normalisation happens on
the device: images travel as uint8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config.inputs import IMAGENET_MEAN, IMAGENET_STD, CropMode, InputSpec, Interpolation, Triple
from ehm.data.augment import RandAugment, RandomErasing, color_jitter
from ehm.data.long_images import central_part

__all__ = ["RESAMPLING", "EvalTransform", "TrainTransform", "Transform", "random_resized_crop_box"]

RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
"""Pillow's filters, which smooth before they reduce."""


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
    """Random resized crop and flip, as MAE pretrains; RandAugment and random erasing for fine-tuning.

    ``image_size`` is (height, width); ``crop_scale`` the range of the crop's share of the image's area; ``flip`` a
    horizontal flip half of the time; ``color_jitter`` how far brightness, contrast and saturation may go from 1, as
    BEiT pretrains; ``rand_augment`` timm's string, for example ``rand-m9-mstd0.5-inc1``; ``random_erasing`` a
    probability; ``mean`` and ``std`` of the normalisation (of values 0 to 1) colour what
    RandAugment uncovers and the noise of erased rectangles; ``interpolation`` resizes the crop. Raises ConfigError for
    a ``rand_augment`` it cannot read.
    """

    image_size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    color_jitter: float = 0.0
    rand_augment: str | None = None
    random_erasing: float = 0.0
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: Interpolation = "bicubic"

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
        crop = image.crop((left, top, left + w, top + h))
        image = crop.resize((width, height), RESAMPLING[self.interpolation])
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
    """Resize and crop the centre, with Pillow; nothing is random.

    ``image_size`` is (height, width). The image is resized to ``resize_to`` (height, width), in a way that
    ``crop_mode`` says:

    - ``center`` keeps the proportions and just covers ``resize_to``;
    - ``squash`` gives exactly ``resize_to``;
    - ``border`` keeps the proportions and just fits into ``resize_to``.

    Then ``image_size`` is cut from the centre; what lies outside of the resized image becomes ``fill`` (R, G, B).
    Without ``resize_to`` MAE's rule holds: 256/224 of ``image_size`` up to 224 pixels, ``image_size`` itself beyond.
    The side that does not decide about the scale is rounded ``down``, as torchvision does, or to the ``nearest`` number
    of pixels, as timm does unless it covers a square. Of a very long image that is to cover, the central part is cut
    out first (:mod:`ehm.data.long_images`).
    """

    image_size: tuple[int, int]
    resize_to: tuple[int, int] | None = None
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)
    rounding: Literal["down", "nearest"] = "down"

    @classmethod
    def from_spec(cls, image_size: tuple[int, int], spec: InputSpec) -> EvalTransform:
        """Return the transform that ``timm.data.create_transform`` makes for this description and size."""
        resize_to = spec.resize_target(image_size)
        # timm leaves squares to torchvision's Resize; MAE's rule has always rounded down here
        down = spec.crop_mode == "center" and (spec.crop_pct is None or resize_to[0] == resize_to[1])
        fill = (0, 0, 0)
        if spec.crop_mode == "border":
            red, green, blue = (round(255 * value) for value in spec.mean)
            fill = (red, green, blue)
        return cls(image_size, resize_to, spec.crop_mode, spec.interpolation, fill, "down" if down else "nearest")

    @property
    def shape(self) -> tuple[int, int, int]:
        """See :class:`Transform`."""
        return (*self.image_size, 3)

    @property
    def cover(self) -> tuple[int, int]:
        """Height and width in pixels that the image is resized to, before the crop."""
        return self.resize_to or InputSpec().resize_target(self.image_size)

    def part(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the box (left, top, right, bottom) of an image of that size that is resized: most often all of it."""
        whole = (0, 0, width, height)
        return central_part(width, height, self.cover) if self.crop_mode == "center" else whole

    def shorten(self, image: Image.Image) -> Image.Image:
        """Return the image, or the central part of one that is so long that resizing would take too much memory."""
        box = self.part(*image.size)
        return image if box == (0, 0, *image.size) else image.crop(box)

    def layout(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """For an image of that size: (width, height) that it is resized to, and (left, top) of the crop in that.

        The crop begins at negative numbers if the resized image is smaller than it.
        """
        size = self._resized_size(width, height)
        return size, (_crop_start(size[0], self.image_size[1]), _crop_start(size[1], self.image_size[0]))

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """An RGB image of any size -> (H, W, 3)."""
        image = self.shorten(image)
        height, width = self.image_size
        size, (left, top) = self.layout(*image.size)
        image = image.resize(size, RESAMPLING[self.interpolation])
        if width <= size[0] and height <= size[1]:
            return np.asarray(image.crop((left, top, left + width, top + height)))
        canvas = Image.new("RGB", (width, height), self.fill)
        canvas.paste(image, (-left, -top))
        return np.asarray(canvas)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after the resize of an image of this size."""
        cover_h, cover_w = self.cover
        if self.crop_mode == "squash":
            return cover_w, cover_h
        if self.rounding == "down":
            if width * cover_h < height * cover_w:
                return cover_w, height * cover_w // width
            return width * cover_h // height, cover_h
        # the same operations as in timm's ResizeKeepRatio, so that halves are rounded alike
        ratios = height / cover_h, width / cover_w
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        # one pixel at least: a long thin image would vanish in "border", and Pillow cannot make an empty one
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def _crop_start(resized: int, wanted: int) -> int:
    """Where a centred crop of ``wanted`` pixels begins, as in torchvision: padding of odd length is longer behind."""
    if resized < wanted:
        return -((wanted - resized) // 2)
    return round((resized - wanted) / 2)


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
