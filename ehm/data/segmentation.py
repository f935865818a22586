"""From an image and its mask to one sample of segmentation: both cut alike, for training, and resized for inference.

The numbers are mmsegmentation's for ADE20K. Images are resized bilinearly as Pillow does, which averages where it
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

__all__ = ["CropTransform", "fitted_size", "photometric", "resize", "windows"]

_TRIES = 10

Scale = tuple[int, int] | None
Box = tuple[int, int, int, int]


def fitted_size(width: int, height: int, scale: Scale, ratio: float = 1.0) -> tuple[int, int]:
    """Width and height of the largest image of these proportions within ``ratio`` times ``scale`` = (long, short).

    ``scale`` None stands for the size that it has.
    """
    long, short = scale or (max(width, height), min(width, height))
    factor = min(long * ratio / max(width, height), short * ratio / min(width, height))
    return max(1, math.floor(width * factor + 0.5)), max(1, math.floor(height * factor + 0.5))


def resize(image: Image.Image, scale: Scale) -> NDArray[np.uint8]:
    """The RGB image (h, w, 3) that inference sees; its proportions stay."""
    size = fitted_size(image.width, image.height, scale)
    return np.array(image if size == image.size else image.resize(size, Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class CropTransform:
    """A random size, crop, flip and distortion of colours; ``scale`` to ``colours`` are those of `SegmentationData`.

    Where the resized image is smaller than ``image_size`` = (height, width), it stands in the upper left corner; the
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
        """See :class:`ehm.data.Transform`."""
        return (*self.image_size, 4)

    def __call__(self, image: Pair, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A pair of any size -> (H, W, 4): red, green, blue, label."""
        picture, labels = image
        size = fitted_size(*picture.size, self.scale, rng.uniform(*self.ratio))
        labels = labels[np.ix_(_nearest(size[1], picture.height), _nearest(size[0], picture.width))]
        left, top, right, bottom = self._box(labels, rng)
        x, y = picture.width / size[0], picture.height / size[1]
        cut = picture.resize(
            (right - left, bottom - top),
            Image.Resampling.BILINEAR,
            (left * x, top * y, min(right * x, picture.width), min(bottom * y, picture.height)),
        )
        if self.colours:
            cut = photometric(cut, rng)
        sample = np.empty(self.shape, np.uint8)
        sample[:] = (*self.fill, IGNORED)
        sample[: bottom - top, : right - left, :3] = np.asarray(cut)
        sample[: bottom - top, : right - left, 3] = labels[top:bottom, left:right]
        if self.flip and rng.random() < 0.5:
            width = right - left
            sample[:, :width] = sample[:, :width][:, ::-1].copy()
        return sample

    def _box(self, labels: NDArray[np.uint8], rng: np.random.Generator) -> Box:
        """Left, top, right and bottom of a crop in which no class has too large a share; the last one of ten tries."""
        (height, width), (h, w) = labels.shape, self.image_size
        for _ in range(_TRIES):
            top = int(rng.integers(max(height - h, 0) + 1))
            left = int(rng.integers(max(width - w, 0) + 1))
            box = left, top, min(left + w, width), min(top + h, height)
            counts = np.bincount(labels[top : box[3], left : box[2]].ravel(), minlength=IGNORED + 1)[:IGNORED]
            if self.max_share == 1 or (np.count_nonzero(counts) > 1 and counts.max() < self.max_share * counts.sum()):
                break
        return box


def windows(size: tuple[int, ...], crop: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Upper left corners (y, x) of windows of ``crop`` that cover ``size``; the last ones are moved to lie inside."""
    rows, columns = (
        [min(index * step, side - part) for index in range(max(0, -(-(side - part) // step)) + 1)]
        for side, part, step in zip(size, crop, stride, strict=True)
    )
    return [(y, x) for y in rows for x in columns]


def photometric(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness (up to 32 levels), contrast, saturation (both by 0.5 to 1.5) and hue (18 of 180), each half the time.

    Contrast comes before the other two or behind them (Liu et al., 2016, as in mmsegmentation).
    """
    levels = np.arange(256)
    if rng.random() < 0.5:
        image = _mapped(image, levels + rng.uniform(-32, 32))
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    early = rng.random() < 0.5
    if early:
        image = _mapped(image, levels * contrast)
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    turn = rng.uniform(-18, 18) / 180 * 256 if rng.random() < 0.5 else 0.0
    if saturation != 1 or turn:
        hues, saturations, values = image.convert("HSV").split()
        hues = hues.point([round(level + turn) % 256 for level in range(256)])
        saturations = _mapped(saturations, levels * saturation)
        image = Image.merge("HSV", (hues, saturations, values)).convert("RGB")
    return image if early else _mapped(image, levels * contrast)


def _mapped(image: Image.Image, values: NDArray[np.floating]) -> Image.Image:
    """Each level of each channel replaced by the one at its place in ``values`` (256,)."""
    table: list[int] = np.clip(np.rint(values), 0, 255).astype(int).tolist()
    return image.point(table * len(image.getbands()))


def _nearest(size: int, origin: int) -> NDArray[np.int64]:
    """For each of ``size`` pixels the one of ``origin`` that lies at its centre."""
    return ((np.arange(size) + 0.5) * origin / size).astype(np.int64)
