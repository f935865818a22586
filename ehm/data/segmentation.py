"""From an image and its mask to one sample of segmentation: both cut alike, for training, and resized for inference.

The numbers are mmsegmentation's for ADE20K. Images are resized bilinearly as Pillow does, which averages when it
reduces (OpenCV, which that uses, does not), masks to the nearest pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.sources.masks import IGNORED
from ehm.data.sources.pairs import Pair

__all__ = ["CropTransform", "ScaleTransform", "distort_colours", "fit_size", "place_windows", "resize_to_scale"]

_TRIES = 10
"""Crops that are drawn until one has no class with too large a share, as in mmsegmentation."""

Scale = tuple[int, int] | None
"""The longest that the long and the short side may be; None leaves an image as it is."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


def fit_size(width: int, height: int, scale: Scale, ratio: float = 1.0) -> tuple[int, int]:
    """Return the width and height of the largest image of these proportions within ``ratio`` times ``scale``."""
    long, short = scale or (max(width, height), min(width, height))
    factor = min(long * ratio / max(width, height), short * ratio / min(width, height))
    # halves are rounded up, as mmcv does; Python's round takes the even number
    return max(1, math.floor(width * factor + 0.5)), max(1, math.floor(height * factor + 0.5))


def resize_to_scale(image: Image.Image, scale: Scale) -> NDArray[np.uint8]:
    """Return the RGB image (h, w, 3) that inference sees; its proportions stay."""
    size = fit_size(image.width, image.height, scale)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.array(image)


@dataclass(frozen=True)
class ScaleTransform:
    """Resizes images as inference does; their masks keep their own size, in which answers are compared."""

    scale: Scale
    shape: None = None

    def __call__(self, image: Pair, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the image (h, w, 3) and the labels (H, W)."""
        picture, labels = image
        return resize_to_scale(picture, self.scale), labels


@dataclass(frozen=True)
class CropTransform:
    """A random size, crop, flip and distortion of colours; ``scale`` to ``colours`` are those of `SegmentationData`.

    If the resized image is smaller than ``image_size`` = (height, width), it stands in the upper left corner; the
    rest has the colour ``fill`` and the label 255.
    """

    image_size: tuple[int, int]
    scale: Scale = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    max_share: float = 0.75
    flip: bool = True
    colours: bool = True
    fill: tuple[int, int, int] = (124, 116, 104)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every sample: red, green, blue and the label."""
        return (*self.image_size, 4)

    def __call__(self, image: Pair, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return the sample (H, W, 4) of an image and its mask of any size."""
        picture, labels = image
        width, height = fit_size(*picture.size, self.scale, rng.uniform(*self.ratio))
        rows = _find_nearest_indices(height, picture.height)
        columns = _find_nearest_indices(width, picture.width)
        # labels are numbers, which cannot be averaged: each pixel takes the nearest
        labels = labels[np.ix_(rows, columns)]
        left, top, right, bottom = self._draw_box(labels, rng)
        crop_height = bottom - top
        crop_width = right - left

        # cropped and resized in one step, straight from the original, of which only the crop is computed
        x = picture.width / width
        y = picture.height / height
        box = (left * x, top * y, min(right * x, picture.width), min(bottom * y, picture.height))
        crop = picture.resize((crop_width, crop_height), Image.Resampling.BILINEAR, box)
        if self.colours:
            crop = distort_colours(crop, rng)

        sample = np.empty(self.shape, np.uint8)
        sample[:] = (*self.fill, IGNORED)
        sample[:crop_height, :crop_width, :3] = np.asarray(crop)
        sample[:crop_height, :crop_width, 3] = labels[top:bottom, left:right]
        # only the crop is flipped, so that the padding stays on the right
        if self.flip and rng.random() < 0.5:
            sample[:, :crop_width] = sample[:, :crop_width][:, ::-1].copy()
        return sample

    def _draw_box(self, labels: NDArray[np.uint8], rng: np.random.Generator) -> Box:
        """Draw a crop in which no class has too large a share; of ten that all have one, the last."""
        height, width = labels.shape
        crop_height, crop_width = self.image_size
        for _ in range(_TRIES):
            top = int(rng.integers(max(height - crop_height, 0) + 1))
            left = int(rng.integers(max(width - crop_width, 0) + 1))
            right = min(left + crop_width, width)
            bottom = min(top + crop_height, height)
            # pixels that are ignored count for no class
            counts = np.bincount(labels[top:bottom, left:right].ravel(), minlength=IGNORED + 1)[:IGNORED]
            if self.max_share == 1:
                break
            if np.count_nonzero(counts) > 1 and counts.max() < self.max_share * counts.sum():
                break
        return left, top, right, bottom


def place_windows(size: tuple[int, ...], crop: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the upper left corners (y, x) of windows of ``crop`` that cover ``size``, the last ones moved inside."""
    rows = _place_along(size[0], crop[0], stride[0])
    columns = _place_along(size[1], crop[1], stride[1])
    return [(y, x) for y in rows for x in columns]


def _place_along(length: int, window: int, stride: int) -> list[int]:
    """Return the first pixel of each window along one side."""
    steps = max(0, math.ceil((length - window) / stride))
    return [min(index * stride, length - window) for index in range(steps + 1)]


def distort_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness (by 32 levels), contrast, saturation (by 0.5 to 1.5) and hue (18 of 180), each half the time.

    Contrast comes before the other two or behind them (Liu et al., 2016, as in mmsegmentation).
    """
    # the order of the draws is part of what a seed means
    levels = np.arange(256)
    if rng.random() < 0.5:
        image = _map_levels(image, levels + rng.uniform(-32, 32))
    contrast = _draw_factor(rng)
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = _map_levels(image, levels * contrast)
    saturation = _draw_factor(rng)
    turn = 0.0
    if rng.random() < 0.5:
        turn = rng.uniform(-18, 18) / 180 * 256
    if saturation != 1 or turn:
        hues, saturations, values = image.convert("HSV").split()
        hues = hues.point([round(level + turn) % 256 for level in range(256)])
        saturations = _map_levels(saturations, levels * saturation)
        image = Image.merge("HSV", (hues, saturations, values)).convert("RGB")
    if not contrast_first:
        image = _map_levels(image, levels * contrast)
    return image


def _draw_factor(rng: np.random.Generator) -> float:
    """Draw a factor from 0.5 to 1.5 half the time, and 1 otherwise."""
    return rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0


def _map_levels(image: Image.Image, values: NDArray[np.floating]) -> Image.Image:
    """Replace each level of each channel by the one at its place in ``values`` (256,)."""
    table: list[int] = np.clip(np.rint(values), 0, 255).astype(int).tolist()
    return image.point(table * len(image.getbands()))


def _find_nearest_indices(size: int, origin: int) -> NDArray[np.int64]:
    """Return for each of ``size`` pixels the one of ``origin`` that lies at its centre."""
    return ((np.arange(size) + 0.5) * origin / size).astype(np.int64)
