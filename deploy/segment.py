"""A mask of an image of any size with a bundle: windows, their scores averaged, and a PNG. NumPy and Pillow alone.

Shapes: an image of H x W pixels, h x w of them once resized, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.segment import windows

__all__ = ["enlarged_argmax", "palette", "segment", "write_mask"]

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Size = tuple[int, int]
_BATCH = 4
_BAND = 64
"""Rows of a mask that are made at once: the scores of a large image, whole, would take gigabytes."""


def segment(run: Run, pixels: NDArray[np.float32], window: Size, stride: Size, size: Size) -> NDArray[np.uint8]:
    """Class numbers of ``size`` = (H, W) for a resized, normalised image (3, h, w), as ``ehm evaluate`` finds them.

    ``run`` gives scores (B, C, *window) of windows (B, 3, *window), which lie ``stride`` apart (``slide`` there).
    """
    (height, width), (h, w) = window, pixels.shape[1:]
    pixels = np.pad(pixels, ((0, 0), (0, max(height - h, 0)), (0, max(width - w, 0))))
    corners = windows(pixels.shape[1:], window, stride)
    total: NDArray[np.float32] | None = None
    counts = np.zeros(pixels.shape[1:], np.float32)
    for start in range(0, len(corners), _BATCH):
        chosen = corners[start : start + _BATCH]
        inputs = np.stack([pixels[:, y : y + height, x : x + width] for y, x in chosen])
        for (y, x), scores in zip(chosen, run(inputs), strict=True):
            if total is None:
                total = np.zeros((len(scores), *pixels.shape[1:]), np.float32)
            total[:, y : y + height, x : x + width] += scores
            counts[y : y + height, x : x + width] += 1
    assert total is not None
    total /= counts
    return enlarged_argmax(total[:, :h, :w], size)


def enlarged_argmax(scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of the highest of scores (C, h, w), once they are resized bilinearly to ``size`` = (H, W)."""
    labels = np.empty(size, np.uint8)
    left, right, across = _places(scores.shape[2], size[1])
    upper, lower, down = _places(scores.shape[1], size[0])
    for start in range(0, size[0], _BAND):
        rows = slice(start, start + _BAND)
        weight = down[rows, None]
        band = scores[:, upper[rows]] * (1 - weight) + scores[:, lower[rows]] * weight
        labels[rows] = (band[:, :, left] * (1 - across) + band[:, :, right] * across).argmax(axis=0)
    return labels


def _places(origin: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
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
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    picture.putpalette(palette())
    path = folder / f"{unique}.png"
    picture.save(path)
    return str(path)


def palette() -> list[int]:
    """Red, green and blue of 256 classes: those of PASCAL VOC's masks, whose bits are spread over the three."""
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((np.arange(256) >> (channel + 3 * bit) & 1) << (7 - bit)).astype(np.uint8)
    values: list[int] = colours.ravel().tolist()
    return values
