"""Figures of frozen features, which are measured while a run pretrains.

Shapes: n images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ehm.analysis.feature_rank import compute_rankme, compute_spread
from ehm.analysis.neighbours import NEIGHBOURS, vote_by_neighbours
from ehm.analysis.ridge import score_by_ridge

__all__ = ["measure_features"]

Score = Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], int], NDArray[np.float64]]
"""Scores the classes of queries: features (n, D), their labels (n,), queries (m, D), C -> scores (m, C)."""


def measure_features(
    features: NDArray[np.float32],
    labels: NDArray[np.int64] | None = None,
    folds: NDArray[np.int64] | None = None,
    classes: int = 0,
) -> dict[str, float]:
    """Return the figures of ``features`` (n, D): ``rankme``, ``feature_spread`` and, with labels, ``knn``, ``linear``.

    The latter two are top-1 accuracies in [0, 1] by cross-validation: each image is classified by the images of the
    other ``folds`` (n,).
    """
    figures = {}
    if labels is not None:
        assert folds is not None
        figures["knn"] = _cross_validate(_score_by_neighbours, features, labels, folds, classes)
        figures["linear"] = _cross_validate(score_by_ridge, features, labels, folds, classes)
    figures["rankme"] = compute_rankme(features)
    figures["feature_spread"] = compute_spread(features)
    return figures


def _score_by_neighbours(
    features: NDArray[np.float32], labels: NDArray[np.int64], queries: NDArray[np.float32], classes: int
) -> NDArray[np.float64]:
    return vote_by_neighbours(features, labels, queries, classes, NEIGHBOURS)


def _cross_validate(
    score: Score, features: NDArray[np.float32], labels: NDArray[np.int64], folds: NDArray[np.int64], classes: int
) -> float:
    """Return the share of images whose own class has the highest score, with each fold scored by the others."""
    correct = 0
    for fold in np.unique(folds):
        held_out = folds == fold
        scores = score(features[~held_out], labels[~held_out], features[held_out], classes)
        correct += int((scores.argmax(axis=1) == labels[held_out]).sum())
    return correct / len(labels)
