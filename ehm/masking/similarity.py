"""Similarities of patches: checks, balancing against hubs, and the cosine of features.

Raw attention has patches that everybody attends to. Average linkage merges these first and then swallows the rest one
by one: the tree becomes a chain, and "level l" one huge part beside single patches. Balancing gives every patch the
same total similarity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.masking._parallel import run_over_batch

__all__ = ["NotFiniteAttentionError", "balance", "convert_similarity", "cosine_similarity", "make_symmetric"]

Array = NDArray[np.floating[Any]]

LARGEST = 1e100
"""Magnitude that a similarity must stay below, so that sums over its entries cannot overflow."""
LARGEST_GAP = 1e-3
"""Difference between two entries that should be equal, as a share of the largest one, that counts as rounding."""

ITERATIONS_PER_TREE = 20
"""Rounds of balancing that take about as long as it takes to build a tree from the same matrix."""


class NotFiniteAttentionError(ValueError):
    """The similarity or saliency that masks are made of is not finite, because the weights are not."""


def balance(similarity: Any, iterations: int = 20, threads: int | None = None) -> NDArray[np.float32]:
    """Balance similarities so that every patch gets the same total, 1: (B, N, N) -> (B, N, N) float32.

    This is symmetric Sinkhorn balancing (Sinkhorn and Knopp, 1967): each of ``iterations`` rounds divides by
    sqrt(row sum x column sum). The diagonal becomes zero. Raises ValueError for what :func:`build_hierarchy` refuses,
    and for negative similarities.
    """
    from ehm.masking._sinkhorn import balance_batch  # numba: imported at first use

    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}")
    array = convert_similarity(similarity)
    smallest = array.min()
    if not smallest >= 0:  # true for NaN, too
        raise ValueError(f"similarity must be finite and not negative to be balanced, but holds {smallest}")
    balanced = np.empty(array.shape, np.float32)
    batch, n = array.shape[:2]
    rounds = np.full(batch, iterations)
    entries = n * n * iterations // ITERATIONS_PER_TREE
    run_over_batch(balance_batch, array, balanced, rounds, entries=entries, threads=threads)
    if not np.isfinite(balanced).all():
        raise ValueError("similarity must be finite, but holds infinity")
    return balanced


def cosine_similarity(features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Compute the cosine of the angles between features, moved to [0, 1]: (B, N, D) -> (B, N, N)."""
    directions = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    # The move to [0, 1] changes no tree, and balance() takes no negative entries.
    cosine = (1 + directions @ directions.swapaxes(1, 2)) / 2
    similarity: NDArray[np.float32] = ((cosine + cosine.swapaxes(1, 2)) / 2).astype(np.float32)
    return similarity


def convert_similarity(similarity: Any) -> Array:
    """Convert ``similarity`` to a contiguous array (B, N, N) of float32 or float64.

    Anything that offers ``__array__`` or ``__dlpack__`` on the host is read in place. Its values are not checked.
    Raises ValueError if it has another shape or does not hold real numbers.
    """
    if hasattr(similarity, "detach"):  # a torch tensor that takes part in a gradient refuses to be read
        similarity = similarity.detach()
    try:
        if hasattr(similarity, "__array__") or not hasattr(similarity, "__dlpack__"):
            array = np.asarray(similarity)
        else:
            array = np.from_dlpack(similarity)
    except (TypeError, RuntimeError, BufferError, ValueError) as error:
        raise ValueError(f"similarity must be an array in host memory: {error}") from None
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"similarity must have shape (B, N, N), not {array.shape}")
    if array.shape[0] < 1 or array.shape[1] < 2:
        raise ValueError(f"similarity must hold at least one image of at least two patches; its shape is {array.shape}")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"similarity must hold real numbers, not {array.dtype}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    return _view_read_only(np.ascontiguousarray(array))


def make_symmetric(similarity: Array, b: int) -> Array:
    """Average the rounding errors out of the (N, N) similarity of image ``b``.

    Raises ValueError, which names the entry, if it is not finite, too large, or not symmetric but for rounding.
    """
    invalid = ~(np.abs(similarity, dtype=np.float64) < LARGEST)
    if invalid.any():
        i, j = np.argwhere(invalid)[0]
        raise ValueError(
            f"similarity must be finite and below {LARGEST:g}; similarity[{b}, {i}, {j}] is {similarity[i, j]}"
        )
    gap = np.abs(similarity - similarity.T)
    if gap.max() > LARGEST_GAP * np.abs(similarity).max():
        i, j = np.unravel_index(gap.argmax(), gap.shape)
        raise ValueError(
            f"similarity must be symmetric, (A + A^T) / 2; similarity[{b}, {i}, {j}] is {similarity[i, j]} and "
            f"similarity[{b}, {j}, {i}] is {similarity[j, i]}"
        )
    # halved first, because the sum of two large numbers may overflow
    return _view_read_only(similarity / 2 + similarity.T / 2)


def _view_read_only(array: Array) -> Array:
    """Return a view that cannot be written: numba compiles a kernel anew for arrays that can and that cannot."""
    view = array.view()
    view.flags.writeable = False
    return view
