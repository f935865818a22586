"""Read masks: label images of up to 8 bits in which a pixel's value is its class.

Shapes: an image of H x W pixels, C classes.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from ehm.data.decoding.decode import open_image
from ehm.data.decoding.deep import find_raw_mode
from ehm.data.decoding.orientation import read_orientation, turn_array
from ehm.errors import BrokenImage

__all__ = ["IGNORED", "MASK_SUFFIXES", "read_mask"]

IGNORED = 255
"""The value of pixels that neither train nor count."""
MASK_SUFFIXES = frozenset({".bmp", ".gif", ".png", ".tif", ".tiff"})
"""Files that keep labels as they are; a JPEG would blur them."""
_GREY_LEVELS = re.compile(r"L(?:;([24]))?(I?)R?")
"""Pillow's words for greyscale: how many bits if not 8, and whether 0 is white."""


def read_mask(file: str, zero_ignored: bool = False) -> NDArray[np.uint8]:
    """Return class numbers (H, W), turned as the file's own orientation says; :data:`IGNORED` stays.

    They are the values in the file, whatever grey or colour a viewer shows for them. With ``zero_ignored``, 0 is
    ignored too, and classes count from 1. Raises BrokenImage if the file is no label image of 1 to 8 bits (PNG's
    palette or grey levels).
    """
    with open_image(file) as image:
        if image.mode not in ("1", "L", "P"):
            what = "colours" if image.mode in ("RGB", "RGBA", "LA", "PA") else "another kind of values"
            raise BrokenImage(
                f"{file}: a mask is a label image of 8 bits (grey levels or a palette) whose values are classes; "
                f"this one has {what} (Pillow's mode {image.mode})"
            )
        stored_as = find_raw_mode(image)
        image.load()  # which turns TIFFs, so that their size and orientation are others behind it
        labels = np.array(image, dtype=np.uint8)
        labels = turn_array(_restore_values(labels, stored_as), read_orientation(image))
    if zero_ignored:
        labels = np.where(labels == IGNORED, labels, labels - np.uint8(1))  # 0 - 1 is 255
    return np.ascontiguousarray(labels)


def _restore_values(levels: NDArray[np.uint8], stored_as: str) -> NDArray[np.uint8]:
    """Return the values of a file of Pillow's grey levels, which spread 2 and 4 bits over 0 to 255."""
    if stored_as.startswith("1;I"):
        return 1 - levels
    found = _GREY_LEVELS.fullmatch(stored_as)
    if found is None:
        return levels
    bits = int(found[1] or 8)
    white_is_zero = bool(found[2])
    largest = 2**bits - 1
    values = levels // np.uint8(255 // largest)
    return largest - values if white_is_zero else values
