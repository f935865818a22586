"""Means of figures and of their differences, each with a 95 % interval.

Three sources of chance have an interval each: seeds, which are independent (Student's t); folds, whose training images
overlap (the corrected resampled t-test of Nadeau and Bengio, "Inference for the Generalization Error", 2003); and, if
there is one fixed set of test images, the choice of these (the bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "bootstrap_interval", "fold_interval", "seed_interval"]

_CONFIDENCE = 0.95
_FEWEST = 3
"""Values from which on a difference can be shown."""
_UPPER = (1 + _CONFIDENCE) / 2
"""The quantile that a two-sided interval ends at."""


@dataclass(frozen=True)
class Interval:
    """The mean of ``count`` values and half the width of its 95 % interval, None if there is one value only."""

    mean: float
    half: float | None
    count: int

    @property
    def is_shown(self) -> bool:
        """True if the interval of a difference does not contain zero.

        Two values show nothing: figures are whole numbers of images, so that two differences are often equal by chance.
        """
        return self.half is not None and self.count >= _FEWEST and abs(self.mean) > self.half


def seed_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent ``values`` with Student's t interval: mean ± t * sd / sqrt(n)."""
    count = len(values)
    if count < 2:
        return Interval(float(np.mean(values)), None, count)
    half = _t_quantile(count) * np.std(values, ddof=1) / math.sqrt(count)
    return Interval(float(np.mean(values)), float(half), count)


def fold_interval(values: Sequence[float], test_share: float) -> Interval:
    """Return the mean of ``values``, one for each held-out fold, with the corrected resampled t interval.

    Folds share most of their training images, so that the plain t interval of their values would be too narrow. Nadeau
    and Bengio (2003) put (1 / J + n_test / n_train) for 1 / J in the variance of the mean of J values. ``test_share``
    is n_test / n_train.
    """
    count = len(values)
    if count < 2:
        return Interval(float(np.mean(values)), None, count)
    half = _t_quantile(count) * math.sqrt((1 / count + test_share) * float(np.var(values, ddof=1)))
    return Interval(float(np.mean(values)), half, count)


def bootstrap_interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    """Return ``value`` with the normal interval whose standard error is the deviation of ``resampled`` values (n,)."""
    half = _normal_quantile() * float(np.std(resampled, ddof=1))
    return Interval(value, half, len(resampled))


def _t_quantile(count: int) -> float:
    """Return the quantile of Student's t distribution that ends an interval of ``count`` values."""
    # imported late: scipy comes with scikit-learn, whose absence the command tells in a sentence
    from scipy import stats

    return float(stats.t.ppf(_UPPER, count - 1))


def _normal_quantile() -> float:
    """Return the quantile of the normal distribution that ends an interval."""
    return NormalDist().inv_cdf(_UPPER)
