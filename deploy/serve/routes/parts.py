"""What a model sees of an image, and the parts that it takes it apart into, from single patches to the whole.

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

__all__ = ["Level", "Parts", "surroundings", "take_apart", "warm_up"]

_LEVELS = 16
"""At most so many partitions are given; a tree is rarely higher, if it is not a chain."""


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
    """Average linkage (Eq. 5-13) of the cosines between patch features (D, h, w).

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
    colours = choose_part_colours(hierarchy.parent[0], hierarchy.size[0], cuts, grid)
    return Parts(
        grid,
        height,
        [Level(level, len(np.unique(cut)), cut.tolist()) for level, cut in zip(levels, cuts, strict=True)],
        [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours.tolist()],
    )


def warm_up() -> None:
    """Compile what :func:`take_apart` runs, so that the first request does not wait for it."""
    take_apart(np.eye(4, dtype=np.float32).reshape(4, 2, 2))


def surroundings(size: tuple[int, int], seen: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """What to show of an image of ``size``: left, top, width and height in its pixels, with what is ``seen`` in it.

    In each direction at most three times the longer side of the region, so that this stays visible in a long image.
    """
    most = math.ceil(3 * max(seen[2:]))
    lengths = [min(length, most) for length in size]
    middles = [seen[axis] + seen[axis + 2] / 2 for axis in (0, 1)]
    left, top = (
        max(0, min(round(middle - length / 2), whole - length))
        for middle, length, whole in zip(middles, lengths, size, strict=True)
    )
    return left, top, lengths[0], lengths[1]
