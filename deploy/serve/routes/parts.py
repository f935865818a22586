"""The parts that a model takes an image apart into, from single patches to the whole.

Shapes: D features of a patch, h x w patches, N = h * w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.analysis.colours import choose_part_colours
from ehm.errors import DataError
from ehm.masking import build_hierarchy, cosine_similarity

__all__ = ["Level", "Parts", "find_surroundings", "take_apart", "warm_up"]

_LEVELS = 16
"""The most partitions that are given; a tree is rarely higher, if it is not a chain."""


@dataclass(frozen=True)
class Level:
    """A partition: the tree cut at ``level``, the node ``ids`` (N) that patches belong to, and how many there are."""

    level: int
    parts: int
    ids: list[int]


@dataclass(frozen=True)
class Parts:
    """A tree of parts over ``grid`` (h, w) patches, row by row, and its ``levels``, from single patches to the whole.

    ``height`` is the tree's. ``colours`` has one (#rrggbb) for each node, and so for each id: a part keeps its colour
    while it grows, and parts that touch have different ones, as far as ten colours go.
    """

    grid: tuple[int, int]
    height: int
    levels: list[Level]
    colours: list[str]


def take_apart(patches: NDArray[np.float32]) -> Parts:
    """Return the tree of parts by average linkage (Eq. 5-13) of the cosines between patch features (D, h, w).

    Levels are spread evenly from 1 to the tree's height. Raises DataError for features that make no tree.
    """
    grid = patches.shape[1], patches.shape[2]
    features = patches.reshape(len(patches), -1).T
    try:
        hierarchy = build_hierarchy(cosine_similarity(features[None]), threads=1)
    except ValueError as error:  # a single patch, or features that are not finite
        raise DataError(f"the patch features of this model make no parts: {error}") from None
    height = int(hierarchy.height[0])
    levels = np.unique(np.linspace(1, height, _LEVELS).round().astype(int)).tolist()
    cuts = [hierarchy.cut(level)[0] for level in levels]
    described = []
    for level, cut in zip(levels, cuts, strict=True):
        described.append(Level(level, len(np.unique(cut)), cut.tolist()))
    colours = choose_part_colours(hierarchy.parent[0], hierarchy.size[0], cuts, grid)
    return Parts(
        grid,
        height,
        described,
        [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours.tolist()],
    )


def warm_up() -> None:
    """Compile what :func:`take_apart` runs, so that the first request does not wait for it."""
    take_apart(np.eye(4, dtype=np.float32).reshape(4, 2, 2))


def find_surroundings(size: tuple[int, int], seen: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """Return the part of an image of ``size`` to show: left, top, width and height in its pixels.

    It holds the region that is ``seen``. In each direction it has at most three times the longer side of the region,
    so that this stays visible in a long image.
    """
    most = math.ceil(3 * max(seen[2:]))
    left, width = _center_part(size[0], most, seen[0] + seen[2] / 2)
    top, height = _center_part(size[1], most, seen[1] + seen[3] / 2)
    return left, top, width, height


def _center_part(whole: int, most: int, middle: float) -> tuple[int, int]:
    """Return start and length of a part of at most ``most`` pixels around ``middle``, inside of ``whole``."""
    length = min(whole, most)
    return max(0, min(round(middle - length / 2), whole - length)), length
