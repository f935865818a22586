"""Colours for parts of a hierarchy, steady from one depth to the next, and for values between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PALETTE", "heat", "part_colours"]

PALETTE = np.array(
    [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
        (51, 34, 136),
        (136, 34, 85),
        (153, 153, 51),
    ],
    np.uint8,
)
"""Told apart with any kind of colour vision: seven of Okabe and Ito (2008), three darker ones of Tol (2021)."""

_HEAT = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ]
)
"""Eight even steps of matplotlib's inferno, whose lightness rises evenly."""


def heat(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Values in [0, 1], any shape, to inferno's colours from black to pale yellow: (…) -> (…, 3)."""
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, steps, _HEAT[:, channel]) for channel in range(3)], -1).round().astype(np.uint8)


def part_colours(
    parent: NDArray[np.integer[Any]],
    size: NDArray[np.integer[Any]],
    cuts: Sequence[NDArray[np.integer[Any]]],
    grid: tuple[int, int],
) -> NDArray[np.uint8]:
    """A colour for every node of one tree, given by ``parent`` and ``size`` (2N-1,) as in a Hierarchy: (2N-1, 3).

    A parent takes the colour of its largest child, so a part keeps its colour while it grows. Parts that touch in one
    of ``cuts``, each (N,) node ids, get different colours as far as the palette reaches; beyond that, those with the
    shortest common border share one.
    """
    heirs = _heirs(parent, size)
    patches = len(cuts[0])
    borders = np.zeros((patches, patches), np.int64)
    largest = np.zeros(patches, np.int64)
    for cut in cuts:
        owners = heirs[cut].reshape(grid)
        largest = np.maximum(largest, np.bincount(owners.ravel(), minlength=patches))
        for one, other in ((owners[:, 1:], owners[:, :-1]), (owners[1:], owners[:-1])):
            np.add.at(borders, (one, other), 1)
            np.add.at(borders, (other, one), 1)
    np.fill_diagonal(borders, 0)

    chosen = np.full(patches, -1)
    uses = np.zeros(len(PALETTE), np.int64)
    for heir in np.argsort(-largest, kind="stable")[: np.count_nonzero(largest)]:
        shared = np.zeros(len(PALETTE), np.int64)
        neighbours = np.flatnonzero((borders[heir] > 0) & (chosen >= 0))
        np.add.at(shared, chosen[neighbours], borders[heir, neighbours])
        chosen[heir] = np.lexsort((uses, shared))[0]
        uses[chosen[heir]] += 1
    colours: NDArray[np.uint8] = PALETTE[chosen[heirs]]
    return colours


def _heirs(parent: NDArray[np.integer[Any]], size: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """For every node the leaf that is reached by always descending into the largest child: (2N-1,)."""
    nodes = len(parent)
    heirs = np.arange(nodes)
    largest = np.zeros(nodes, np.int64)
    for node in range(nodes - 1):  # children come before their parents
        above = parent[node]
        if size[node] > largest[above]:
            largest[above] = size[node]
            heirs[above] = heirs[node]
    return heirs
