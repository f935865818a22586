"""Masks made of the parts of a hierarchy (Eq. 14-17).

Shapes: B images, N patches, M = 2N - 1 nodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.masking.hierarchy import Hierarchy
from ehm.masking.schedule import masking_level
from ehm.masking.static import count_masked
from ehm.masking.streams import RandomNumbers

__all__ = ["draw_ranks", "hierarchical_mask", "split_mask", "spread_mask"]


def draw_ranks(rng: RandomNumbers, batch: int, patches: int) -> NDArray[np.int32]:
    """Draw the order in which parts and children are taken: a permutation of 0 to M - 1 for each image, (B, M).

    This is all the randomness of a mask, whatever its tree, level and device. Raises ValueError for a ``batch`` or
    ``patches`` below 1.
    """
    from ehm.masking._draw import shuffle_ranks  # numba: imported at first use

    if batch < 1 or patches < 1:
        raise ValueError(f"batch and patches must be at least 1, not {batch} and {patches}")
    uniform = rng.random((batch, 2 * patches - 1))
    ranks = np.empty(uniform.shape, np.int32)
    shuffle_ranks(uniform, ranks)
    return ranks


def hierarchical_mask(
    hierarchy: Hierarchy,
    progress: float,
    ratio: float,
    rng: RandomNumbers | None = None,
    *,
    ranks: NDArray[np.int32] | None = None,
) -> NDArray[np.bool_]:
    """Hide parts at the level of ``progress`` until round(ratio * N) patches are hidden: (B, N), True = masked.

    The parts are taken in random order; the last one is truncated along the tree: it is walked from its root, into a
    random child first, and keeps its first leaves. ``progress`` in [0, 1] sets the level (Eq. 14); level 1 is random
    masking. ``ratio`` is in (0, 1). The order is drawn from ``rng`` by :func:`draw_ranks`, unless ``ranks`` of it are
    given; trees of the same shape then give the same mask, however their nodes are numbered. Raises ValueError for a
    number out of range, for ``ranks`` of another shape, and if neither or both of ``rng`` and ``ranks`` are given.
    """
    from ehm.masking._draw import draw_masks  # numba: imported at first use

    count = count_masked(ratio, hierarchy.patches)
    level = masking_level(progress, hierarchy.height)
    if (rng is None) == (ranks is None):
        raise ValueError("either rng or ranks must be given")
    if ranks is None:
        assert rng is not None
        ranks = draw_ranks(rng, len(hierarchy.parent), hierarchy.patches)
    elif ranks.shape != hierarchy.parent.shape:
        raise ValueError(f"ranks must have shape {hierarchy.parent.shape}, not {ranks.shape}")
    mask = np.empty((len(ranks), hierarchy.patches), np.bool_)
    ranks = np.ascontiguousarray(ranks, np.int32)
    draw_masks(hierarchy.parent, hierarchy.level, hierarchy.size, level, ranks, count, mask)
    return mask


def split_mask(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the visible and of the masked patches, and each patch's place among both.

    (B, N) -> (B, V), (B, N - V), (B, N). Every image has the same number V of visible patches, so the shapes of a step
    do not depend on a mask's contents.
    """
    order = np.argsort(mask, axis=1, kind="stable")
    visible = mask.shape[1] - int(mask[0].sum())
    place = np.argsort(order, axis=1)
    return order[:, :visible].copy(), order[:, visible:].copy(), place


def spread_mask(mask: NDArray[np.bool_], units: tuple[int, int], factor: int) -> NDArray[np.bool_]:
    """Expand a mask of ``units`` = (h, w) to tokens, ``factor`` x ``factor`` to a unit: (B, h * w) -> (B, N)."""
    grid = mask.reshape(-1, *units)
    return grid.repeat(factor, axis=1).repeat(factor, axis=2).reshape(len(mask), -1)
