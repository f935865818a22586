"""Pictures of one image: its parts, its mask, its attention. Pure functions from arrays to arrays.

An image is (h * cell, w * cell, 3) uint8 and lies over a grid of (h, w) patches, ``cell`` pixels wide each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.analysis.colours import heat

__all__ = ["CONTOUR", "HIDDEN", "attention", "border", "box", "enlarge", "masked", "partition"]

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

CONTOUR: Colour = (255, 255, 255)
HIDDEN: Colour = (128, 128, 128)


def partition(image: Image, parts: NDArray[np.integer[Any]], colours: Image) -> Image:
    """``image`` in grey, each part tinted with its colour, contour lines between parts.

    ``parts`` (h, w) holds a number for each patch and ``colours`` (P, 3) a colour for each number.
    """
    cell = image.shape[0] // parts.shape[0]
    single = np.bincount(parts.ravel())[parts] == 1
    opacity = enlarge(np.where(single, 0.2, 0.55), cell)[..., None]
    picture = _blend(_grey(image), enlarge(colours[parts], cell), opacity)
    picture[border(parts, cell)] = CONTOUR
    return picture


def masked(image: Image, mask: NDArray[np.bool_]) -> Image:
    """``image`` with the patches where ``mask`` (h, w) is True painted grey, contour lines around them."""
    cell = image.shape[0] // mask.shape[0]
    picture = image.copy()
    picture[enlarge(mask, cell)] = HIDDEN
    picture[border(mask, cell)] = CONTOUR
    return picture


def attention(image: Image, weights: NDArray[np.floating[Any]], patch: tuple[int, int], colour: Colour) -> Image:
    """A heat map of ``weights`` (h, w) in [0, 1] over ``image`` in grey; ``patch`` = (row, column) in a box."""
    cell = image.shape[0] // weights.shape[0]
    opacity = enlarge(0.5 + 0.3 * weights, cell)[..., None]
    return box(_blend(_grey(image), enlarge(heat(weights), cell), opacity), patch, cell, colour)


def box(image: Image, patch: tuple[int, int], cell: int, colour: Colour) -> Image:
    """``image`` with a frame of ``colour``, lined in black, around the patch at (row, column)."""
    picture = image.copy()
    line = max(2, cell // 8)
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    top, left = patch[0] * cell, patch[1] * cell
    outside = np.maximum(
        np.maximum(top - rows, rows - (top + cell - 1)), np.maximum(left - columns, columns - (left + cell - 1))
    )
    picture[(outside > 0) & (outside <= line + 1)] = 0
    picture[(outside > 0) & (outside <= line)] = colour
    return picture


def border(patches: NDArray[Any], cell: int) -> NDArray[np.bool_]:
    """The line between patches (h, w) of different values: (h * cell, w * cell), True where it runs.

    It is an eighth of a patch wide, 1 to 4 pixels, half of them on either side.
    """
    labels = enlarge(patches, cell)
    height, width = labels.shape
    line = min(max(1, cell // 8), 4)
    before, after = line // 2, line - line // 2
    padded = np.pad(labels, (before, after), mode="edge")
    found = np.zeros((height, width), bool)
    for down in range(line + 1):
        for across in range(line + 1):
            found |= labels != padded[down : down + height, across : across + width]
    return found


def enlarge(patches: NDArray[Any], cell: int) -> NDArray[Any]:
    """Every patch as a square of ``cell`` pixels: (h, w, …) -> (h * cell, w * cell, …)."""
    return patches.repeat(cell, 0).repeat(cell, 1)


def _grey(image: Image) -> Image:
    """``image`` without its colours and its darkest tones, so that a tint shows everywhere."""
    luminance = image @ np.array([0.299, 0.587, 0.114])
    return np.repeat((64 + 0.75 * luminance).round().astype(np.uint8)[..., None], 3, -1)


def _blend(below: Image, above: Image, opacity: Any) -> Image:
    blended: Image = (below * (1 - opacity) + above * opacity).round().astype(np.uint8)
    return blended
