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
    random child first, and keeps its first leaves. ``progress`` in [0, 1] sets the level (Eq. 14); level 1 is random
    masking. ``ratio`` is in (0, 1). Raises ValueError for either out of range.
    """
    from ehm.masking._draw import draw  # numba: imported at first use

    count = masked_count(ratio, hierarchy.patches)
    level = masking_level(progress, hierarchy.height)
    uniform = rng.random(hierarchy.parent.shape)  # all the randomness at once, as many numbers at every level
    mask = np.empty((len(uniform), hierarchy.patches), np.bool_)
    draw(hierarchy.parent, hierarchy.level, hierarchy.size, level, uniform, count, mask)
    return mask
