"""Masks by what the class token attends to: AttMask and MST. Each hides exactly round(ratio * N) patches.

Saliency is the class token's attention to each patch in the last block, mean over heads, with all patches visible
(:meth:`ehm.backends.base.PreparedBatch.compute_saliency`). Both papers take it from a moving average of the model,
their teacher: ``mask.source: ema``. Random numbers also break ties.

Shapes: B images, N patches. True = masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.masking.static import lowest, masked_count
from ehm.masking.streams import RandomNumbers

__all__ = ["attmask_high", "attmask_hint", "attmask_low", "mst_mask"]

Saliency = NDArray[np.floating[Any]]

HINTS = 0.1  # AttMask's show_max: the share of the patches among which hints are drawn, and of a mask that they replace


def attmask_high(saliency: Saliency, ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide the most attended patches (AttMask-High; Kakogeorgiou et al., ECCV 2022): (B, N) -> (B, N).

    Without ties nothing here is random: all views of an image get the same mask. As published (and in the code,
    gkakogeorgiou/attmask) masks are smaller, and about half of the images stay whole; here the ratio is the run's, in
    every image. Raises ValueError for ``saliency`` that is not (B, N) or not finite, and a ``ratio`` outside (0, 1).
    """
    rank, _, count = _ranked(saliency, ratio, rng)
    return lowest(-rank, count)


def attmask_low(saliency: Saliency, ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide the least attended patches (AttMask-Low, Kakogeorgiou et al., ECCV 2022), else as :func:`attmask_high`."""
    rank, _, count = _ranked(saliency, ratio, rng)
    return lowest(rank, count)


def attmask_hint(saliency: Saliency, ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """As :func:`attmask_high`, but some of the most attended patches stay (AttMask-Hint, Kakogeorgiou et al., 2022).

    Hints are as many as a tenth of the mask, drawn from the most attended tenth of the image, the published shares
    (``show_max`` 0.1 in both places); never more than stay visible. The published mask is that much smaller; here the
    next most attended patches are hidden instead, so that the count is exact.
    """
    rank, chance, count = _ranked(saliency, ratio, rng)
    patches = rank.shape[1]
    hints = min(round(HINTS * count), patches - count)
    candidate = rank >= patches - round(HINTS * patches)
    hint = lowest(chance + ~candidate, hints)
    return lowest(np.where(hint, patches, -rank), count)


def mst_mask(saliency: Saliency, ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide patches at random, but not the salient ones (MST; Li et al., NeurIPS 2021): (B, N) -> (B, N).

    MST masks some of the patches whose attention is low, at random, and spares the rest. Its shares are not followed;
    read here so that any ratio works: of the visible patches half, rounded up, are the most attended of the image, and
    the mask is drawn from all others, each as likely. Raises ValueError as :func:`attmask_high` does.
    """
    rank, chance, count = _ranked(saliency, ratio, rng)
    patches = rank.shape[1]
    spared = (patches - count + 1) // 2
    return lowest(chance + (rank >= patches - spared), count)


def _ranked(saliency: Saliency, ratio: float, rng: RandomNumbers) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Each patch's rank (B, N), 0 for the least attended, ties at random; its random number; how many to hide."""
    if saliency.ndim != 2 or min(saliency.shape) < 1:
        raise ValueError(f"saliency must have shape (B, N), at least (1, 1), not {saliency.shape}")
    if not np.isfinite(saliency).all():
        raise ValueError("saliency must be finite, but holds infinity or NaN")
    count = masked_count(ratio, saliency.shape[1])
    chance = rng.random(saliency.shape)
    return np.lexsort((chance, saliency)).argsort(axis=1), chance, count
