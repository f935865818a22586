"""From an image to the pixels (H, W, C) of one sample, for training and for evaluation.

Normalisation happens on the device: photographs travel as bytes, other images in their own depth. Photographs are
Pillow's images in RGB, all others are arrays (:mod:`ehm.data.channel_images`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config.inputs import IMAGENET_MEAN, IMAGENET_STD, CropMode, InputSpec, Interpolation, Means
from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.data.augment import RandAugment, RandomErasing, jitter_colors
from ehm.data.channel_images import cut_out, resize_channels, round_to_type
from ehm.data.long_images import find_central_part

__all__ = [
    "MAY_FLIP",
    "RESAMPLING",
    "EvalTransform",
    "TrainTransform",
    "Transform",
    "draw_resized_crop",
    "sample_dtype",
]

RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
"""Pillow's filters, which smooth before they reduce."""
MAY_FLIP = "ehm_may_flip"
"""Key of an image's ``info``: False keeps training from mirroring it, for a question about left and right."""
_CROP_TRIES = 10


class Transform(Protocol):
    """Makes a sample from what a source gives: an image, or an image and what belongs to it."""

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Height and width in pixels, and channels, of every sample; None if samples differ in size."""
        ...

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        """Return the sample: an array (H, W, channels) of :func:`sample_dtype` if there is a ``shape``."""
        ...


def sample_dtype(transform: Transform) -> np.dtype[Any]:
    """Return the type of the pixels of a transform's samples: bytes, unless its images are no photographs."""
    pixels: PixelFormat = getattr(transform, "pixels", RGB_BYTES)
    return pixels.dtype


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


@dataclass(frozen=True)
class EvalTransform:
    """Resize and crop the centre, with Pillow; nothing is random.

    ``image_size`` is (height, width). The image is resized to ``resize_to`` (height, width), in a way that
    ``crop_mode`` says:

    - ``center`` keeps the proportions and just covers ``resize_to``;
    - ``squash`` gives exactly ``resize_to``;
    - ``border`` keeps the proportions and just fits into ``resize_to``.

    Then ``image_size`` is cut from the centre; what lies outside of the resized image becomes ``fill``, a value for
    each channel of ``pixels``.
    Without ``resize_to`` MAE's rule holds: 256/224 of ``image_size`` up to 224 pixels, ``image_size`` itself beyond.
    The side that does not decide about the scale is rounded ``down``, as torchvision does, or to the ``nearest`` number
    of pixels, as timm does unless it covers a square. Of a very long image that is to cover, the central part is cut
    out first (:mod:`ehm.data.long_images`).
    """

    image_size: tuple[int, int]
    resize_to: tuple[int, int] | None = None
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    fill: tuple[float, ...] = (0, 0, 0)
    rounding: Literal["down", "nearest"] = "down"
    pixels: PixelFormat = RGB_BYTES

    @classmethod
    def from_spec(cls, image_size: tuple[int, int], spec: InputSpec) -> EvalTransform:
        """Return the transform that ``timm.data.create_transform`` makes for this description and size."""
        resize_to = spec.resize_target(image_size)
        # timm leaves squares to torchvision's Resize; MAE's rule has always rounded down here
        rounds_down = spec.crop_mode == "center" and (spec.crop_pct is None or resize_to[0] == resize_to[1])
        fill: tuple[float, ...] = (0,) * spec.pixels.count
        if spec.crop_mode == "border":
            white = spec.pixels.white
            fill = tuple(white * value if spec.pixels.depth == "float" else round(white * value) for value in spec.mean)
        rounding: Literal["down", "nearest"] = "down" if rounds_down else "nearest"
        return cls(image_size, resize_to, spec.crop_mode, spec.interpolation, fill, rounding, spec.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every sample."""
        return (*self.image_size, self.pixels.count)

    @property
    def cover(self) -> tuple[int, int]:
        """Height and width in pixels that the image is resized to, before the crop."""
        return self.resize_to or InputSpec().resize_target(self.image_size)

    def part(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the box (left, top, right, bottom) of an image of that size that is resized: most often all of it."""
        if self.crop_mode == "center":
            return find_central_part(width, height, self.cover)
        return (0, 0, width, height)

    def shorten(self, image: Image.Image) -> Image.Image:
        """Return the image, or the central part of one that is so long that resizing would take too much memory."""
        box = self.part(*image.size)
        if box == (0, 0, *image.size):
            return image
        return image.crop(box)

    def layout(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (width, height) that an image of that size is resized to, and (left, top) of the crop in the result.

        The crop begins at negative numbers if the resized image is smaller than it.
        """
        resized_width, resized_height = self._resized_size(width, height)
        left = _find_crop_start(resized_width, self.image_size[1])
        top = _find_crop_start(resized_height, self.image_size[0])
        return (resized_width, resized_height), (left, top)

    def __call__(self, image: Any, rng: np.random.Generator | None = None) -> NDArray[Any]:
        """Return the sample (H, W, C) of an image of any size; a photograph is RGB or greyscale (mode ``L``)."""
        if isinstance(image, np.ndarray):
            return self._transform_channels(image)
        image = self.shorten(image)
        height, width = self.image_size
        size, (left, top) = self.layout(*image.size)
        image = image.resize(size, RESAMPLING[self.interpolation])
        if image.mode == "L":  # only now, as one channel is resized in half of the time that three take
            image = image.convert("RGB")
        if width <= size[0] and height <= size[1]:  # the crop lies inside, which needs no canvas
            return np.asarray(image.crop((left, top, left + width, top + height)))
        red, green, blue = (int(value) for value in self.fill)
        canvas = Image.new("RGB", (width, height), (red, green, blue))
        canvas.paste(image, (-left, -top))
        return np.asarray(canvas)

    def _transform_channels(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the sample of an image that is no photograph."""
        left, top, right, bottom = self.part(image.shape[1], image.shape[0])
        size, place = self.layout(right - left, bottom - top)
        resized = resize_channels(image, size, RESAMPLING[self.interpolation], (left, top, right, bottom))
        # black if nothing else was said, whatever the number of channels
        fill = np.array(self.fill if any(self.fill) else 0)
        return cut_out(resized, place, self.image_size, round_to_type(fill, self.pixels.dtype))

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after the resize of an image of this size."""
        cover_height, cover_width = self.cover
        if self.crop_mode == "squash":
            return cover_width, cover_height
        if self.rounding == "down":
            if width * cover_height < height * cover_width:
                return cover_width, height * cover_width // width
            return width * cover_height // height, cover_height
        # the same operations as in timm's ResizeKeepRatio, so that halves are rounded alike
        ratio_down = height / cover_height
        ratio_across = width / cover_width
        choose = max if self.crop_mode == "border" else min
        ratio = choose(ratio_down, ratio_across)
        # one pixel at least: a long thin image would vanish in "border", and Pillow cannot make an empty one
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def _find_crop_start(resized: int, wanted: int) -> int:
    """Return the first pixel of a centred crop of ``wanted`` ones, as in torchvision: odd padding is longer behind."""
    if resized < wanted:
        return -((wanted - resized) // 2)
    return round((resized - wanted) / 2)


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
