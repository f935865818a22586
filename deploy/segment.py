"""A mask of an image of any size with a bundle: windows, their scores averaged, and a PNG. NumPy and Pillow alone.

Shapes: an image of H x W pixels, h x w of them once resized, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.segment import windows
from ehm.writing import replace_file

__all__ = ["BATCH", "Mosaic", "enlarged_argmax", "neighbours", "picture", "write_mask"]

Size = tuple[int, int]
BATCH = 4
"""Windows that are run at once."""
_BAND = 64
"""Rows of a mask that are made at once: the scores of a large image, whole, would take gigabytes."""


class Mosaic:
    """The windows of a resized, normalised image (3, h, w), and the mean of their scores where they overlap.

    They are of the size ``window`` and ``stride`` apart, as ``ehm evaluate`` slides.
    """

    def __init__(self, pixels: NDArray[np.float32], window: Size, stride: Size) -> None:
        (height, width), self._size = window, pixels.shape[1:]
        h, w = self._size
        self._pixels = np.pad(pixels, ((0, 0), (0, max(height - h, 0)), (0, max(width - w, 0))))
        self._window, self._corners = window, windows(self._pixels.shape[1:], window, stride)
        self._counts = np.zeros(self._pixels.shape[1:], np.float32)
        self._total: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._corners)

    @property
    def places(self) -> int:
        """Pixels of the image as the windows see it; as many scores of each class are kept."""
        return self._counts.size

    def inputs(self, start: int, count: int) -> NDArray[np.float32]:
        """The windows (B, 3, *window) from number ``start``, ``count`` or what is left of them."""
        height, width = self._window
        chosen = self._corners[start : start + count]
        return np.stack([self._pixels[:, y : y + height, x : x + width] for y, x in chosen])

    def add(self, start: int, scores: NDArray[np.float32]) -> None:
        """Scores (B, C, *window) of the windows from number ``start``."""
        height, width = self._window
        if self._total is None:
            self._total = np.zeros((scores.shape[1], *self._counts.shape), np.float32)
        for (y, x), values in zip(self._corners[start:], scores, strict=False):
            self._total[:, y : y + height, x : x + width] += values
            self._counts[y : y + height, x : x + width] += 1

    def labels(self, size: Size) -> NDArray[np.uint8]:
        """Class numbers of ``size`` = (H, W), once all windows have their scores."""
        assert self._total is not None
        h, w = self._size
        return enlarged_argmax((self._total / self._counts)[:, :h, :w], size)


def enlarged_argmax(scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of the highest of scores (C, h, w), once they are resized bilinearly to ``size`` = (H, W)."""
    labels = np.empty(size, np.uint8)
    left, right, across = neighbours(scores.shape[2], size[1])
    upper, lower, down = neighbours(scores.shape[1], size[0])
    for start in range(0, size[0], _BAND):
        rows = slice(start, start + _BAND)
        weight = down[rows, None]
        band = scores[:, upper[rows]] * (1 - weight) + scores[:, lower[rows]] * weight
        labels[rows] = (band[:, :, left] * (1 - across) + band[:, :, right] * across).argmax(axis=0)
    return labels


def neighbours(origin: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each of ``size`` pixels the two of ``origin`` around its centre, and the weight of the second."""
    centre = np.clip((np.arange(size) + 0.5) * (origin / size) - 0.5, 0, origin - 1)
    first = np.floor(centre).astype(np.int64)
    return first, np.minimum(first + 1, origin - 1), (centre - first).astype(np.float32)


def write_mask(labels: NDArray[np.uint8], folder: Path, name: str, taken: set[str]) -> str:
    """Write ``folder/NAME.png``, or NAME-2.png … where the name is ``taken``, and return its path."""
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    taken.add(unique)
    path = folder / f"{unique}.png"
    with replace_file(path) as temporary:
        picture(labels).save(temporary, format="PNG")
    return str(path)


def picture(labels: NDArray[np.uint8]) -> Image.Image:
    """Class numbers (H, W) as an image whose palette is that of PASCAL VOC's masks."""
    image = Image.fromarray(labels)
    image.putpalette(_palette())
    return image


def _palette() -> list[int]:
    """Red, green and blue of 256 classes, whose bits are spread over the three."""
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((np.arange(256) >> (channel + 3 * bit) & 1) << (7 - bit)).astype(np.uint8)
    values: list[int] = colours.ravel().tolist()
    return values
