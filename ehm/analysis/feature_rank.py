"""Figures of features that need no labels: how many directions they fill, and how much they differ between images.

Shapes: n images, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["compute_rankme", "compute_spread"]

_EPSILON = 1e-7
"""Added to each share of the singular values, as in RankMe: the smallest difference that float32 tells apart."""


def compute_rankme(features: NDArray[Any]) -> float:
    """Compute RankMe of ``features`` (n, D): the number of directions that they fill, in [1, min(n, D)].

    It is the exponential of the entropy of the singular values, each as a share of their sum (Garrido et al., 2023,
    equation 1): min(n, D) if all are equal, and 1 if all features point in one direction. The features are not centred:
    a large part that all features have in common counts as one direction.
    """
    # float64, because the smallest of many singular values would be rounding errors in float32
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    total = singular.sum()
    if total == 0:
        return 1.0
    shares = singular / total + _EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def compute_spread(features: NDArray[Any]) -> float:
    """Compute the distance of ``features`` (n, D) from their mean, as a share of their length, in [0, 1].

    Both are root mean squares over the images. 0 means that all images have the same features, 1 that they have nothing
    in common.
    """
    features = features.astype(np.float64)
    length = (features**2).sum(axis=1).mean()
    if length == 0:
        return 0.0
    distance = ((features - features.mean(axis=0)) ** 2).sum(axis=1).mean()
    return float(np.sqrt(distance / length))
