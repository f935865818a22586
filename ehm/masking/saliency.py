"""Masks by the attention of the class token: AttMask and MST. Each hides exactly round(ratio * N) patches.

Saliency is the class token's attention to each patch in the last block, mean over heads, with all patches visible
(:meth:`ehm.backends.base.PreparedBatch.compute_saliency`). Both papers take it from a moving average of the model,
their teacher: ``mask.source: ema``. Random numbers also break ties.

Shapes: B images, N patches. True = masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.masking.static import count_masked, mask_lowest
from ehm.masking.streams import RandomNumbers

__all__ = ["attmask_high", "attmask_hint", "attmask_low", "mst_mask"]

Saliency = NDArray[np.floating[Any]]

HINTS = 0.1
"""AttMask's ``show_max``: the share of the patches among which hints are drawn, and of a mask that they replace."""


def attmask_high(saliency: Saliency, ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide the most attended patches (AttMask-High; Kakogeorgiou et al., ECCV 2022): (B, N) -> (B, N).

    Without ties nothing is random: all views of an image get the same mask. In the published code
    (gkakogeorgiou/attmask) masks are smaller, and about half of the images have none; here every image has the ratio of
    the run. Raises ValueError if ``saliency`` is not (B, N) or not finite, or ``ratio`` not in (0, 1).
    """
    rank, _, count = _rank_patches(saliency, ratio, rng)
    return mask_lowest(-rank, count)


def attmask_low(saliency: Saliency, ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide the least attended patches (AttMask-Low; Kakogeorgiou et al., ECCV 2022); see :func:`attmask_high`."""
    rank, _, count = _rank_patches(saliency, ratio, rng)
    return mask_lowest(rank, count)


def attmask_hint(saliency: Saliency, ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide the most attended patches but some, the hints (AttMask-Hint; Kakogeorgiou et al., ECCV 2022).

    There are as many hints as a tenth of the mask, drawn from the most attended tenth of the image, as published, but
    never more than stay visible. The published mask is smaller by the hints; here the next most attended patches are
    hidden instead, so that the count is exact. See :func:`attmask_high`.
    """
    rank, chance, count = _rank_patches(saliency, ratio, rng)
    patches = rank.shape[1]
    hints = min(round(HINTS * count), patches - count)
    candidate = rank >= patches - round(HINTS * patches)
    hint = mask_lowest(chance + ~candidate, hints)
    return mask_lowest(np.where(hint, patches, -rank), count)


def mst_mask(saliency: Saliency, ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide patches at random, but not the salient ones (MST; Li et al., NeurIPS 2021): (B, N) -> (B, N).

    MST masks some of the patches whose attention is low, at random, and spares the rest. Its published shares allow no
    free ratio, so they are not followed: half of the visible patches, rounded up, are the most attended of the image,
    and the mask is drawn from all others, each as likely. Raises ValueError as :func:`attmask_high` does.
    """
    rank, chance, count = _rank_patches(saliency, ratio, rng)
    patches = rank.shape[1]
    spared = (patches - count + 1) // 2
    return mask_lowest(chance + (rank >= patches - spared), count)


def _rank_patches(
    saliency: Saliency, ratio: float, rng: RandomNumbers
) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Return the rank of each patch (B, N), 0 for the least attended and ties at random.

    Also returns the random number of each patch and the number of patches to hide.
    """
    if saliency.ndim != 2 or min(saliency.shape) < 1:
        raise ValueError(f"saliency must have shape (B, N), at least (1, 1), not {saliency.shape}")
    if not np.isfinite(saliency).all():
        raise ValueError("saliency must be finite, but holds infinity or NaN")
    count = count_masked(ratio, saliency.shape[1])
    chance = rng.random(saliency.shape)
    return np.lexsort((chance, saliency)).argsort(axis=1), chance, count
