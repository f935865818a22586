"""A mask of an image of any size with a bundle: windows, their scores averaged, and a PNG. NumPy and Pillow alone.

Shapes: an image of H x W pixels, h x w of them once resized, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.bilinear import enlarged_argmax
from ehm.data.segmentation import windows
from ehm.storage.writing import replace_file

__all__ = ["BATCH", "Mosaic", "picture", "write_mask"]

Size = tuple[int, int]
BATCH = 4
"""Windows that are run at once."""


class Mosaic:
    """The windows of a resized, normalised image (3, h, w), and the mean of their scores where they overlap.

    They are of the size ``window`` and ``stride`` apart, as ``ehm evaluate`` slides.
    """

    def __init__(self, pixels: NDArray[np.float32], window: Size, stride: Size) -> None:
        height, width = pixels.shape[1:]
        self._pixels = pixels
        self._window = window
        self._corners = windows((max(height, window[0]), max(width, window[1])), window, stride)
        self._counts = np.zeros((height, width), np.float32)
        self._total: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._corners)

    @property
    def places(self) -> int:
        """Pixels of the resized image; as many scores of each class are kept."""
        return self._counts.size

    def inputs(self, start: int, count: int) -> NDArray[np.float32]:
        """The windows (B, 3, *window) from number ``start``, ``count`` or what is left of them."""
        # windows are padded one by one: a line of pixels, padded as a whole, would grow to a window's height
        return np.stack([self._padded_window(corner) for corner in self._corners[start : start + count]])

    def add(self, start: int, scores: NDArray[np.float32]) -> None:
        """Scores (B, C, *window) of the windows from number ``start``."""
        height, width = self._window
        if self._total is None:
            self._total = np.zeros((scores.shape[1], *self._counts.shape), np.float32)
        for (y, x), values in zip(self._corners[start:], scores, strict=False):
            inside = self._total[:, y : y + height, x : x + width]
            inside += values[:, : inside.shape[1], : inside.shape[2]]
            self._counts[y : y + height, x : x + width] += 1

    def labels(self, size: Size) -> NDArray[np.uint8]:
        """Class numbers of ``size`` = (H, W), once all windows have their scores."""
        assert self._total is not None
        return enlarged_argmax(self._total / self._counts, size)

    def _padded_window(self, corner: Size) -> NDArray[np.float32]:
        """Return the window (3, *window) at ``corner`` (y, x), with zeros on the right and below the image."""
        y, x = corner
        height, width = self._window
        inside = self._pixels[:, y : y + height, x : x + width]
        return np.pad(inside, ((0, 0), (0, height - inside.shape[1]), (0, width - inside.shape[2])))


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
