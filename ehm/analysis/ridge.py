"""A linear probe in closed form: ridge regression from frozen features to classes.

It needs neither epochs nor a learning rate, and is deterministic.

Shapes: n images with labels, m images to classify, D features, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PENALTIES", "score_by_ridge"]

PENALTIES = np.logspace(-4, 1, 11)
"""The penalties to choose from, divided by the number n of images, for features that have a variance of 1."""


def score_by_ridge(
    features: NDArray[Any], labels: NDArray[np.int64], queries: NDArray[Any], classes: int
) -> NDArray[np.float64]:
    """Return scores (m, C) of the classes of ``queries`` (m, D), by ridge regression on ``features`` (n, D).

    The targets are 1 for an image's own class and -1 for others, and features are standardised. The penalty is the one
    of ``PENALTIES`` with the smallest squared leave-one-out error, which a single fit gives for all images (as in
    scikit-learn's ``RidgeClassifierCV``).
    """
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    deviation[deviation == 0] = 1  # a constant feature stays 0 after the mean is subtracted
    inputs = (features - mean) / deviation
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    offset = targets.mean(axis=0)
    centred = targets - offset

    # In the basis of the eigenvectors, the solution for each penalty is only a division.
    eigenvalues, vectors = np.linalg.eigh(inputs.T @ inputs)
    eigenvalues = eigenvalues.clip(min=0)
    rotated = inputs @ vectors  # (n, D)
    moments = rotated.T @ centred  # (D, C)
    best_error = np.inf
    weights = np.zeros_like(moments)
    for penalty in PENALTIES * len(features):
        shrunk = moments / (eigenvalues + penalty)[:, None]
        # The leave-one-out error of an image is its error divided by 1 - leverage; 1 / n is the part of the offset.
        leverage = 1 / len(features) + rotated**2 @ (1 / (eigenvalues + penalty))
        errors = (centred - rotated @ shrunk) / (1 - leverage)[:, None]
        error = np.square(errors).mean()
        if error < best_error:
            best_error = error
            weights = vectors @ shrunk
    scores: NDArray[np.float64] = (queries - mean) / deviation @ weights + offset
    return scores
