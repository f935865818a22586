"""Colours for the parts of a hierarchy, which keep from one depth to the next, and for values between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PALETTE", "choose_part_colours", "compute_heat_colours"]

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
"""Colours that differ for any kind of colour vision: seven of Okabe and Ito (2008), three darker ones of Tol (2021)."""

_INFERNO = np.array(
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
"""Eight even steps of matplotlib's inferno, whose lightness rises evenly; a copy, so that matplotlib is not needed."""


def compute_heat_colours(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return inferno's colours, from black to pale yellow, of values in [0, 1] of any shape: (…) -> (…, 3)."""
    steps = np.linspace(0, 1, len(_INFERNO))
    channels = [np.interp(values, steps, _INFERNO[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def choose_part_colours(
    parent: NDArray[np.integer[Any]],
    size: NDArray[np.integer[Any]],
    cuts: Sequence[NDArray[np.integer[Any]]],
    grid: tuple[int, int],
) -> NDArray[np.uint8]:
    """Choose a colour for every node of one tree: (2N-1, 3).

    The tree is given by ``parent`` and ``size``, both (2N-1,), as in a :class:`ehm.masking.Hierarchy`.
    A parent takes the colour of its largest child, so a part keeps its colour while it grows. Parts that touch in one
    of ``cuts``, each (N,) node ids, get different colours as far as the palette reaches; beyond that, those with the
    shortest common border share one.
    """
    heirs = _find_heirs(parent, size)
    patches = len(cuts[0])
    borders = np.zeros((patches, patches), np.int64)
    largest = np.zeros(patches, np.int64)
    for cut in cuts:
        owners = heirs[cut].reshape(grid)
        largest = np.maximum(largest, np.bincount(owners.ravel(), minlength=patches))
        side_by_side = (owners[:, 1:], owners[:, :-1])
        one_above_other = (owners[1:], owners[:-1])
        for one, other in (side_by_side, one_above_other):
            # add.at counts every pair; plain indexing would count repeated indices once
            np.add.at(borders, (one, other), 1)
            np.add.at(borders, (other, one), 1)
    np.fill_diagonal(borders, 0)  # a part has no border with itself

    chosen = np.full(patches, -1)
    uses = np.zeros(len(PALETTE), np.int64)
    # Large parts choose first: two neighbours of the same colour are most confusing if they are large.
    for heir in np.argsort(-largest, kind="stable")[: np.count_nonzero(largest)]:
        shared = np.zeros(len(PALETTE), np.int64)
        neighbours = np.flatnonzero((borders[heir] > 0) & (chosen >= 0))
        np.add.at(shared, chosen[neighbours], borders[heir, neighbours])
        # the colour with the shortest border to its own kind, and of these the least used one
        chosen[heir] = np.lexsort((uses, shared))[0]
        uses[chosen[heir]] += 1
    colours: NDArray[np.uint8] = PALETTE[chosen[heirs]]
    return colours


def _find_heirs(parent: NDArray[np.integer[Any]], size: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return for every node the leaf that is reached by always descending into the largest child: (2N-1,)."""
    nodes = len(parent)
    heirs = np.arange(nodes)
    largest = np.zeros(nodes, np.int64)
    for node in range(nodes - 1):  # children come before their parents, so one pass is enough
        above = parent[node]
        if size[node] > largest[above]:
            largest[above] = size[node]
            heirs[above] = heirs[node]
    return heirs
