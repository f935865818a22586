"""Stratified folds, for data without a validation part of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["stratified_folds"]


def stratified_folds(labels: ArrayLike, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold, 0 to ``folds`` - 1, of each of n samples: (n,) labels -> (n,).

    In every fold each class, and the whole, has the same number of samples up to one. Samples of a class are dealt in
    an order drawn from ``seed``. Raises ValueError for fewer than 2 folds or more folds than samples.
    """
    labels = np.asarray(labels)
    if not 2 <= folds <= len(labels):
        raise ValueError(f"folds must be from 2 to the {len(labels)} samples, not {folds}")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold_of = np.empty(len(labels), dtype=np.int64)
    # dealt on from one class to the next, not begun anew at fold 0, so that whole folds differ by one at most
    fold_of[by_class] = np.arange(len(labels)) % folds
    return fold_of
