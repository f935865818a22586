"""Crop and resize images of any channels, as arrays (H, W, C) of bytes, of 16 bits or of floating point.

Pillow resizes one channel at a time, with the same filters as photographs; 16 bits are resized in float32, which holds
them exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["cut_out", "resize_channels", "round_to_type"]


def resize_channels(
    image: NDArray[Any],
    size: tuple[int, int],
    method: Image.Resampling,
    box: tuple[int, int, int, int] | None = None,
) -> NDArray[Any]:
    """Resize ``box`` (left, top, right, bottom) of an image, all of it if left out, to ``size`` = (width, height)."""
    if box is not None:
        left, top, right, bottom = box
        image = image[top:bottom, left:right]
    width, height = size
    resized = np.empty((height, width, image.shape[2]), image.dtype)
    for channel in range(image.shape[2]):
        plane = np.ascontiguousarray(image[:, :, channel])
        if plane.dtype != np.uint8:
            plane = plane.astype(np.float32)
        values = np.asarray(Image.fromarray(plane).resize(size, method))
        resized[:, :, channel] = round_to_type(values, image.dtype)
    return resized


def cut_out(image: NDArray[Any], place: tuple[int, int], size: tuple[int, int], fill: NDArray[Any]) -> NDArray[Any]:
    """Cut ``size`` = (height, width) from ``place`` = (left, top), which may be negative; outside is ``fill`` (C,)."""
    left, top = place
    height, width = size
    cut = np.empty((height, width, image.shape[2]), image.dtype)
    cut[:] = fill
    inside = image[max(0, top) : top + height, max(0, left) : left + width]
    row = max(0, -top)
    column = max(0, -left)
    cut[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return cut


def round_to_type(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return values as ``dtype``: rounded and cut off at its limits, or at 0 and 1 for floating point."""
    if values.dtype == dtype and dtype.kind == "u":
        return values
    if dtype.kind == "f":
        # filters overshoot at edges
        return values.clip(0, 1).astype(dtype)
    return np.rint(values).clip(0, np.iinfo(dtype).max).astype(dtype)
