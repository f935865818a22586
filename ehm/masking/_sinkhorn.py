# mypy: disable-error-code="untyped-decorator"
"""Symmetric Sinkhorn balancing of a batch, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.masking._jit import kernel

__all__ = ["balance_batch"]


@kernel
def balance_batch(similarity: NDArray[Any], balanced: NDArray[np.float32], iterations: NDArray[np.int64]) -> None:
    """Compute ``balanced`` (B, N, N) = diag(d) S diag(d), S without its diagonal.

    The scale d is found in ``iterations`` (B,) rounds. A patch that resembles nothing keeps its zeros.
    """
    # Dividing a symmetric matrix by sqrt(row sum x column sum) scales its rows and columns alike, so that only the
    # (N,) scale d is iterated, and the matrix is written once.
    n = similarity.shape[1]
    scale = np.empty(n, np.float32)
    total = np.empty(n, np.float32)
    for b in range(similarity.shape[0]):
        for i in range(n):
            scale[i] = 1
            for j in range(n):
                balanced[b, i, j] = similarity[b, i, j]
            balanced[b, i, i] = 0
        for _ in range(iterations[b]):
            for j in range(n):
                total[j] = 0
            for i in range(n):
                for j in range(n):
                    total[j] += balanced[b, i, j] * scale[i]
            for j in range(n):
                total[j] *= scale[j]
                if total[j] > 0:
                    scale[j] /= np.sqrt(total[j])
        for i in range(n):
            for j in range(n):
                balanced[b, i, j] *= scale[i] * scale[j]
