"""Pictures of one image: its parts, its mask, its attention. Pure functions from arrays to arrays.

An image is (h * cell, w * cell, 3) uint8 and lies over a grid of (h, w) patches, ``cell`` pixels wide each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.analysis.colours import compute_heat_colours

__all__ = [
    "CONTOUR",
    "HIDDEN",
    "draw_attention",
    "draw_box",
    "draw_heat",
    "draw_heat_bar",
    "draw_mask",
    "draw_partition",
    "enlarge_patches",
    "find_borders",
]

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

CONTOUR: Colour = (255, 255, 255)
HIDDEN: Colour = (128, 128, 128)
_BAR_WIDTH = 320
_BAR_HEIGHT = 22
_LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Shares of R, G and B in the brightness of a pixel (ITU-R BT.601)."""


def draw_partition(image: Image, parts: NDArray[np.integer[Any]], colours: Image) -> Image:
    """Draw ``image`` in grey, each part tinted with its colour, contour lines between parts.

    ``parts`` (h, w) holds a number for each patch and ``colours`` (P, 3) a colour for each number.
    """
    cell = image.shape[0] // parts.shape[0]
    # Single patches are pale: in a chain of merges there are many, and they would drown the parts.
    single = np.bincount(parts.ravel())[parts] == 1
    opacity = enlarge_patches(np.where(single, 0.2, 0.55), cell)[..., None]
    picture = _blend(_to_grey(image), enlarge_patches(colours[parts], cell), opacity)
    picture[find_borders(parts, cell)] = CONTOUR
    return picture


def draw_mask(image: Image, mask: NDArray[np.bool_]) -> Image:
    """Draw ``image`` with the patches where ``mask`` (h, w) is True painted grey, contour lines around them."""
    cell = image.shape[0] // mask.shape[0]
    picture = image.copy()
    picture[enlarge_patches(mask, cell)] = HIDDEN
    picture[find_borders(mask, cell)] = CONTOUR
    return picture


def draw_attention(image: Image, weights: NDArray[np.floating[Any]], patch: tuple[int, int], colour: Colour) -> Image:
    """Draw a heat map of ``weights`` (h, w) in [0, 1] over ``image`` in grey; ``patch`` = (row, column) in a box."""
    cell = image.shape[0] // weights.shape[0]
    return draw_box(draw_heat(image, weights), patch, cell, colour)


def draw_heat(image: Image, weights: NDArray[np.floating[Any]]) -> Image:
    """Draw a heat map of ``weights`` (h, w) in [0, 1] over ``image`` in grey."""
    cell = image.shape[0] // weights.shape[0]
    # Low values let more of the image through, so that its content can be recognised.
    opacity = enlarge_patches(0.5 + 0.3 * weights, cell)[..., None]
    return _blend(_to_grey(image), enlarge_patches(compute_heat_colours(weights), cell), opacity)


def draw_heat_bar() -> Image:
    """Draw the colours of heat maps from 0 to 1, left to right."""
    return np.repeat(compute_heat_colours(np.linspace(0, 1, _BAR_WIDTH))[None], _BAR_HEIGHT, 0)


def draw_box(image: Image, patch: tuple[int, int], cell: int, colour: Colour) -> Image:
    """Draw a frame of ``colour``, lined in black, around the patch at (row, column) of ``image``."""
    picture = image.copy()
    line = max(2, cell // 8)
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    top = patch[0] * cell
    left = patch[1] * cell
    rows_outside = np.maximum(top - rows, rows - (top + cell - 1))
    columns_outside = np.maximum(left - columns, columns - (left + cell - 1))
    # the number of pixels from each pixel to the patch, not positive inside it
    outside = np.maximum(rows_outside, columns_outside)
    # The black line comes first and stays one pixel wide outside of the coloured one.
    picture[(outside > 0) & (outside <= line + 1)] = 0
    picture[(outside > 0) & (outside <= line)] = colour
    return picture


def find_borders(patches: NDArray[Any], cell: int) -> NDArray[np.bool_]:
    """Find the lines between patches (h, w) of different values: a mask (h * cell, w * cell), True on the lines.

    Lines are an eighth of a patch wide, 1 to 4 pixels, half of it on either side of a border.
    """
    labels = enlarge_patches(patches, cell)
    height, width = labels.shape
    line = min(max(1, cell // 8), 4)
    before = line // 2
    # Padded with its own edge, so that there is no line around the image.
    padded = np.pad(labels, (before, line - before), mode="edge")
    found = np.zeros((height, width), bool)
    for down in range(line + 1):
        for across in range(line + 1):
            found |= labels != padded[down : down + height, across : across + width]
    return found


def enlarge_patches(patches: NDArray[Any], cell: int) -> NDArray[Any]:
    """Repeat every patch over a square of ``cell`` pixels: (h, w, …) -> (h * cell, w * cell, …)."""
    return patches.repeat(cell, 0).repeat(cell, 1)


def _to_grey(image: Image) -> Image:
    """Return ``image`` without its colours and its darkest tones, so that a tint shows everywhere."""
    grey = (64 + 0.75 * (image @ _LUMINANCE)).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


def _blend(below: Image, above: Image, opacity: Any) -> Image:
    blended: Image = (below * (1 - opacity) + above * opacity).round().astype(np.uint8)
    return blended
