"""Classes by nearest neighbours and by ridge regression, against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from ehm.analysis.neighbours import vote_by_neighbours
from ehm.analysis.ridge import PENALTIES, score_by_ridge


def clusters(seed, count, classes=4, width=10):
    """Features of ``count`` images in overlapping clusters, and their classes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.integers(0, classes, count)
    features = 5 + centres[labels] + 1.5 * rng.normal(size=(count, width)) * np.linspace(0.1, 3, width)
    return features.astype(np.float32), labels


@pytest.mark.parametrize("neighbours", [1, 7, 20])
def test_votes_are_those_of_scikit_learns_neighbours(neighbours):
    features, labels = clusters(0, 200)
    queries, _ = clusters(1, 90)
    mean = features.mean(axis=0)
    reference = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    reference.fit(features - mean, labels)
    votes = vote_by_neighbours(features, labels, queries, 4, neighbours)
    np.testing.assert_allclose(votes, reference.predict_proba(queries - mean), atol=1e-4)


@pytest.mark.parametrize(("images", "width"), [(300, 10), (60, 100), (40, 3)])
@pytest.mark.parametrize("classes", [3, 5])
def test_scores_are_those_of_scikit_learns_ridge(images, width, classes):
    features, labels = clusters(0, images, classes, width)
    queries, _ = clusters(1, 80, classes, width)
    scaler = StandardScaler().fit(features.astype(np.float64))
    reference = RidgeClassifierCV(PENALTIES * images).fit(scaler.transform(features), labels)
    scores = score_by_ridge(features, labels, queries, classes)
    np.testing.assert_allclose(scores, reference.decision_function(scaler.transform(queries)), atol=1e-4)


def test_a_feature_that_never_varies_changes_nothing():
    features, labels = clusters(0, 100)
    queries, _ = clusters(1, 20)
    with_constant = [np.pad(each, ((0, 0), (0, 1)), constant_values=3) for each in (features, queries)]
    scores = score_by_ridge(with_constant[0], labels, with_constant[1], 4)
    np.testing.assert_allclose(scores, score_by_ridge(features, labels, queries, 4), atol=1e-9)
