"""Intervals agree with SciPy's tests, and the correction for folds with the formula of its paper written out."""

import math

import numpy as np
import pytest
from scipy import stats

from ehm.comparison.statistics import (
    Interval,
    compute_bootstrap_interval,
    compute_fold_interval,
    compute_seed_interval,
)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_the_interval_over_seeds_is_scipys_for_a_paired_t_test(count):
    rng = np.random.default_rng(count)
    first = rng.normal(0.8, 0.01, count)
    second = first + rng.normal(0.005, 0.004, count)
    found = compute_seed_interval((second - first).tolist())
    expected = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert found.mean == pytest.approx((second - first).mean())
    assert found.mean - found.half == pytest.approx(expected.low)
    assert found.mean + found.half == pytest.approx(expected.high)


def test_the_interval_over_folds_is_the_corrected_resampled_t_test():
    # 10 times 5 folds: J = 50 values, and a fourth as many test images as training images
    values = np.random.default_rng(0).normal(0.01, 0.02, 50)
    found = compute_fold_interval(values.tolist(), 1 / 4)
    # Nadeau and Bengio (2003): t = mean / sqrt((1 / J + n_test / n_train) * s^2), with J - 1 degrees of freedom
    squares = sum((value - values.mean()) ** 2 for value in values) / 49
    statistic = values.mean() / math.sqrt((1 / 50 + 1 / 4) * squares)
    p_value = 2 * stats.t.sf(abs(statistic), 49)
    assert found.half == pytest.approx(found.mean / statistic * stats.t.ppf(0.975, 49))
    assert found.is_shown == (p_value < 0.05)
    # without the correction the interval would be SciPy's, less than a third as wide
    plain = stats.t.interval(0.95, 49, values.mean(), stats.sem(values))
    assert found.half > 3 * (plain[1] - plain[0]) / 2
    assert compute_fold_interval(values.tolist(), 0).half == pytest.approx((plain[1] - plain[0]) / 2)


def test_the_correction_keeps_what_is_no_difference_from_being_shown():
    """Two guessers on overlapping folds differ by chance; the plain interval would show that far too often."""
    shown = {"corrected": 0, "plain": 0}
    trials = 400
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        # a part of each difference is common to all folds of one data set, as their training images are
        common = rng.normal(0, 1)
        values = (common * math.sqrt(0.2) + rng.normal(0, math.sqrt(0.8), 15)).tolist()
        shown["corrected"] += compute_fold_interval(values, 1 / 4).is_shown
        shown["plain"] += compute_seed_interval(values).is_shown
    assert shown["corrected"] / trials < 0.08
    assert shown["plain"] / trials > 0.2


def test_one_value_has_no_interval_and_two_show_nothing():
    assert compute_seed_interval([0.5]) == Interval(0.5, None, 1)
    assert compute_fold_interval([0.5], 0.25) == Interval(0.5, None, 1)
    assert not compute_seed_interval([0.5]).is_shown
    assert not compute_seed_interval([0.01, 0.01]).is_shown
    assert compute_seed_interval([0.01, 0.01, 0.01]).is_shown
    assert not compute_seed_interval([0.0, 0.0, 0.0]).is_shown


def test_the_bootstrap_has_the_standard_error_of_a_share():
    rng = np.random.default_rng(0)
    correct = rng.random(2000) < 0.7
    draws = rng.integers(2000, size=(2000, 2000))
    found = compute_bootstrap_interval(correct.mean(), correct[draws].mean(axis=1))
    expected = 1.96 * math.sqrt(correct.mean() * (1 - correct.mean()) / 2000)
    assert found.half == pytest.approx(expected, rel=0.06)
