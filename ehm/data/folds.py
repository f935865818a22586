"""Stratified folds, for data without a validation part of its own: of single images, and of groups of images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["group_folds", "stratified_folds"]


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
    # the next class goes on where the last one ended, not at fold 0 again, so that whole folds differ by one at most
    fold_of[by_class] = np.arange(len(labels)) % folds
    return fold_of


def group_folds(counts: ArrayLike, groups: ArrayLike, folds: int) -> NDArray[np.int64]:
    """Return the fold, 0 to ``folds`` - 1, of each of n samples, none of whose ``groups`` (n,) is in two folds: (n,).

    ``counts`` (n, C) are what is spread evenly over the folds: ones and zeros that say which classes a sample has.
    Groups are taken one after the other, those of the most uneven counts first, and each goes to the fold that leaves
    the shares of all classes the most even, or of equally good folds to the smallest. This is the rule of
    scikit-learn's StratifiedGroupKFold without a shuffle. Raises ValueError for fewer than 2 folds or more folds than
    groups.
    """
    counts = np.asarray(counts, np.float64)
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    if not 2 <= folds <= len(names):
        raise ValueError(f"folds must be from 2 to the {len(names)} groups, not {folds}")
    counts_of = np.zeros((len(names), counts.shape[1]))
    np.add.at(counts_of, group_of, counts)
    totals = np.maximum(counts.sum(axis=0), 1)  # a class that never occurs is even in any case
    counts_in = np.zeros((folds, counts.shape[1]))
    fold_of_group = np.empty(len(names), np.int64)
    for group in np.argsort(-counts_of.std(axis=1), kind="stable").tolist():
        fold = _choose_fold(counts_in, counts_of[group], totals)
        counts_in[fold] += counts_of[group]
        fold_of_group[group] = fold
    return fold_of_group[group_of]


def _choose_fold(counts_in: NDArray[np.float64], added: NDArray[np.float64], totals: NDArray[np.float64]) -> int:
    """Return the fold of ``counts_in`` (folds, C) that a group with the counts ``added`` (C,) leaves the most even."""
    best = 0
    least_spread = np.inf
    fewest = np.inf
    for fold, own in enumerate(counts_in):
        tried = counts_in.copy()
        tried[fold] += added
        spread = float((tried / totals).std(axis=0).mean())
        size = float(own.sum())
        if spread < least_spread or (np.isclose(spread, least_spread) and size < fewest):
            best = fold
            least_spread = spread
            fewest = size
    return best
