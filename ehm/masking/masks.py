"""Masks made of the parts of a hierarchy (Eq. 14-17)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.masking.hierarchy import Hierarchy
from ehm.masking.schedule import masking_level
from ehm.masking.static import masked_count

__all__ = ["hierarchical_mask"]


def hierarchical_mask(
    hierarchy: Hierarchy, progress: float, ratio: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Hide parts at the level of ``progress`` until round(ratio * N) patches are hidden: (B, N), True = masked.

    The parts are taken in random order; the last one is truncated along the tree: it is walked from its root, into a
    random child first, and keeps its first leaves. ``progress`` in [0, 1] sets the level (Eq. 14).
    """
    from ehm.masking._kernels import mark  # numba: imported at first use

    n = hierarchy.patches
    count = masked_count(ratio, n)
    level = masking_level(progress, hierarchy.height)[:, None]
    above = np.take_along_axis(hierarchy.level, np.maximum(hierarchy.parent, 0), axis=1)
    chosen = (hierarchy.level <= level) & ((hierarchy.parent < 0) | (above > level))
    priority = rng.random(hierarchy.parent.shape)  # all randomness at once, in the order of the images
    mask = np.zeros((len(hierarchy.parent), n), np.bool_)
    for b, row in enumerate(mask):
        nodes = np.flatnonzero(chosen[b])
        order = nodes[np.argsort(priority[b, nodes])]
        mark(order, hierarchy.children[b], priority[b], count, row)
    return mask
