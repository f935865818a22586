"""RankMe and the spread of features, against spectra that are known and against plain definitions."""

import numpy as np
import pytest
from scipy.stats import entropy, ortho_group

from ehm.analysis.feature_rank import compute_rankme, compute_spread


def features_with(singular, images=60):
    """Features (images, D) whose singular values are ``singular`` (D,)."""
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(images, len(singular))))
    right = ortho_group.rvs(len(singular), random_state=rng)
    return left * singular @ right


@pytest.mark.parametrize("directions", [1, 3, 24])
def test_rankme_counts_equal_directions(directions):
    singular = np.zeros(24)
    singular[:directions] = 7
    assert compute_rankme(features_with(singular)) == pytest.approx(directions, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
def test_rankme_is_the_exponential_of_the_entropy_of_the_spectrum(scale):
    singular = scale * np.random.default_rng(1).exponential(size=24)
    expected = np.exp(entropy(singular))
    assert compute_rankme(features_with(singular)) == pytest.approx(expected, rel=1e-4)
    assert compute_rankme(features_with(singular).astype(np.float32)) == pytest.approx(expected, rel=1e-4)


def test_fewer_images_than_features_bound_the_rank():
    features = np.random.default_rng(0).normal(size=(10, 200))
    assert 9 < compute_rankme(features) < 10.1


def test_features_that_are_alike_have_one_direction_and_no_spread():
    alike = np.tile(np.random.default_rng(0).normal(size=12), (30, 1))
    assert compute_rankme(alike) == pytest.approx(1, abs=1e-4)
    assert compute_spread(alike) == pytest.approx(0, abs=1e-7)
    assert compute_rankme(np.zeros((30, 12))) == 1
    assert compute_spread(np.zeros((30, 12))) == 0


def test_the_spread_is_the_share_of_the_length_that_the_mean_leaves():
    rng = np.random.default_rng(0)
    features = rng.normal(3, 1, (500, 8))
    # by Pythagoras, what the mean explains and what it leaves add up to the mean square
    explained = np.linalg.norm(features.mean(axis=0)) ** 2 / np.mean(np.linalg.norm(features, axis=1) ** 2)
    assert compute_spread(features) == pytest.approx(np.sqrt(1 - explained))
    assert compute_spread(features) == pytest.approx(np.sqrt(1 / (1 + 9)), rel=0.05)
    assert compute_spread(features - features.mean(axis=0)) == pytest.approx(1)
