"""Stratified folds have the properties of scikit-learn's."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from ehm.data import stratified_folds


def class_counts(labels, test_folds):
    """Count the samples of each class in the folds, without their order."""
    return {
        int(name): sorted(int(((labels == name) & (test_folds == fold)).sum()) for fold in range(test_folds.max() + 1))
        for name in np.unique(labels)
    }


@given(st.lists(st.integers(5, 40), min_size=2, max_size=5), st.integers(2, 5), st.integers(0, 99))
def test_as_balanced_as_scikit_learns(sizes, folds, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    reference = np.empty(len(labels), dtype=int)
    for fold, (_, test) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)):
        reference[test] = fold
    ours = stratified_folds(labels, folds, seed)
    assert ours.dtype == np.int64
    assert class_counts(labels, ours) == class_counts(labels, reference)
    sizes_of_folds = Counter(ours.tolist()).values()
    assert len(sizes_of_folds) == folds
    assert max(sizes_of_folds) - min(sizes_of_folds) <= 1


def test_depends_on_the_seed_alone():
    labels = np.arange(60) % 3
    assert (stratified_folds(labels, 5, 1) == stratified_folds(labels, 5, 1)).all()
    assert (stratified_folds(labels, 5, 1) != stratified_folds(labels, 5, 2)).any()


@pytest.mark.parametrize("folds", [0, 1, 7])
def test_impossible_folds(folds):
    with pytest.raises(ValueError, match=f"not {folds}"):
        stratified_folds([0, 1, 0, 1, 0, 1], folds, 0)
