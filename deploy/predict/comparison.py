"""Cosines of outputs and of features, and shares of the same answers of two networks on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Comparison", "compute_cosines", "scale_to_length_1"]

_LEAST_LENGTH = np.float32(1e-12)
"""The least length that features are divided by, as in torch's ``normalize``."""


@dataclass(frozen=True)
class Comparison:
    """Outputs beside those in float32, for each of B images: ``cosines`` (B,), and ``agreements`` (B,).

    The latter are the shares of answers that are the same: of classes, of pixels, of objects. None stands for a network
    that gives no answers.
    """

    cosines: NDArray[np.float64]
    agreements: NDArray[np.float64] | None = None


def compute_cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows (B,) of two arrays (B, ...)."""
    x = a.reshape(len(a), -1).astype(np.float64)
    y = b.reshape(len(b), -1).astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    # a row of zeros has no direction: its cosine is 0 rather than not a number
    cosines: NDArray[np.float64] = np.sum(x * y, axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return cosines


def scale_to_length_1(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features (..., D) divided by their length, so that inner products are cosines; zeros stay zeros."""
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    directions: NDArray[np.float32] = features / np.maximum(lengths, _LEAST_LENGTH)
    return directions
