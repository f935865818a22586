"""Checks of a similarity, and its balancing against hubs.

Raw attention has patches that everybody attends to. Average linkage merges these first and then swallows the rest one by
one: the tree becomes a chain, and "level l" one huge part beside single patches. Balancing gives every patch the same
total similarity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["balance", "check_similarity"]

Array = NDArray[np.floating[Any]]


def balance(similarity: Any, iterations: int = 20) -> NDArray[np.float32]:
    """Symmetric Sinkhorn balancing of (B, N, N) similarities, which must not be negative; the diagonal becomes zero.

    Each of ``iterations`` rounds divides by sqrt(row sum x column sum).
    """
    checked = check_similarity(similarity)
    if checked.min() < 0:
        raise ValueError(f"similarity must not be negative to be balanced; its smallest value is {checked.min()}")
    balanced = np.array(checked, dtype=np.float32, order="C", copy=True)
    from ehm.masking._kernels import sinkhorn  # numba: imported at first use

    sinkhorn(balanced, iterations)
    return balanced


def check_similarity(similarity: Any) -> Array:
    """``similarity`` as a NumPy array (B, N, N) of float32 or float64; ValueError where it is not one."""
    array = np.asarray(similarity.detach() if hasattr(similarity, "detach") else similarity)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"similarity must have shape (B, N, N), not {array.shape}")
    if array.shape[0] < 1 or array.shape[1] < 2:
        raise ValueError(f"similarity must hold at least one image of two patches; its shape is {array.shape}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("similarity must be finite, but holds NaN or infinity")
    return array
