"""Masks: label images of 8 bits in which a pixel's value is its class, and what can be wrong with them.

Shapes: an image of H x W pixels, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.data.decode import opened
from ehm.errors import BrokenImage

__all__ = ["IGNORED", "MASK_SUFFIXES", "read_mask"]

IGNORED = 255
"""The value of pixels that neither train nor count."""
MASK_SUFFIXES = frozenset({".bmp", ".gif", ".png", ".tif", ".tiff"})
"""Files that keep labels as they are; a JPEG would blur them."""


def read_mask(file: str, zero_ignored: bool = False) -> NDArray[np.uint8]:
    """Class numbers (H, W); :data:`IGNORED` stays. Where ``zero_ignored``, 0 is too, and classes count from 1 there.

    Raises BrokenImage for what is no label image of 8 bits (PNG's palette or grey levels).
    """
    with opened(file) as image:
        if image.mode not in ("L", "P"):
            what = "colours" if image.mode in ("RGB", "RGBA", "LA", "PA") else "another kind of values"
            raise BrokenImage(
                f"{file}: a mask is a label image of 8 bits (grey levels or a palette) whose values are classes; "
                f"this one has {what} (Pillow's mode {image.mode})"
            )
        labels = np.array(image, dtype=np.uint8)
    if zero_ignored:
        labels = np.where(labels == IGNORED, labels, labels - np.uint8(1))  # 0 - 1 is 255
    return labels
