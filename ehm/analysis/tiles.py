"""The size and the captions of tiles, which all pages share.

Shapes: H x W pixels of an image, (h, w) patches of a grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsFloat

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["choose_cell", "describe_mask", "describe_part_count", "enlarge_image"]

_SMALLEST_CELL = 4
"""Side of a patch on the page in pixels, at least: a smaller patch would be nothing but contour."""


def choose_cell(grid: tuple[int, int], tile_width: int) -> int:
    """Return the side of a patch in pixels that makes a tile of (h, w) patches about ``tile_width`` wide."""
    return max(_SMALLEST_CELL, tile_width // max(grid))


def enlarge_image(image: NDArray[np.uint8], grid: tuple[int, int], cell: int) -> NDArray[np.uint8]:
    """Resize an image (H, W, 3) so that each of its (h, w) patches covers ``cell`` x ``cell`` pixels."""
    size = (grid[1] * cell, grid[0] * cell)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def describe_mask(figures: Mapping[str, SupportsFloat]) -> tuple[str, ...]:
    """Return the lines below the mask of one image, from the figures that its masker reports."""
    known = {name: round(float(value)) for name, value in figures.items()}
    lines = []
    if "parts" in known:
        lines.append(describe_part_count(known["parts"]))
    if "mask_level" in known:
        lines.append(f"level {known['mask_level']} of {known['tree_height']}")
    return tuple(lines)


def describe_part_count(count: int) -> str:
    """Return ``count`` in words, for example "1 part"."""
    return f"{count} part{'s' * (count != 1)}"
