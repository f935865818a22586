"""Means of figures and of their differences, each with a 95 % interval.

There is one kind of interval for each source of chance:

- seeds, which are independent: Student's t;
- folds, whose training images overlap: the corrected resampled t-test of Nadeau and Bengio, "Inference for the
  Generalization Error", 2003;
- the choice of test images, if there is one fixed set of them: the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "compute_bootstrap_interval", "compute_fold_interval", "compute_seed_interval"]

_CONFIDENCE = 0.95
_UPPER = (1 + _CONFIDENCE) / 2
"""The quantile at the upper end of a two-sided interval."""
_FEWEST_VALUES = 3
"""The number of values that it takes at least to show a difference.

Figures are shares of a whole number of images, so that two differences are often equal by chance. The interval of two
equal values has no width and would show any difference.
"""


@dataclass(frozen=True)
class Interval:
    """The mean of ``count`` values, and ``half`` the width of its 95 % interval: None if there is only one value."""

    mean: float
    half: float | None
    count: int

    @property
    def is_shown(self) -> bool:
        """True if there are enough values of a difference, and its interval does not contain zero."""
        return self.half is not None and self.count >= _FEWEST_VALUES and abs(self.mean) > self.half


def compute_seed_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent ``values`` with Student's t interval: mean ± t * sd / sqrt(n)."""
    count = len(values)
    if count < 2:
        return Interval(float(np.mean(values)), None, count)
    half = _compute_t_quantile(count) * np.std(values, ddof=1) / math.sqrt(count)
    return Interval(float(np.mean(values)), float(half), count)


def compute_fold_interval(values: Sequence[float], test_share: float) -> Interval:
    """Return the mean of ``values``, one for each held-out fold, with the corrected resampled t interval.

    Folds share most of their training images, so the plain t interval of their values would be too narrow. In the
    variance of the mean of J values, Nadeau and Bengio (2003) replace the factor 1 / J by 1 / J + n_test / n_train.
    ``test_share`` is n_test / n_train.
    """
    count = len(values)
    if count < 2:
        return Interval(float(np.mean(values)), None, count)
    half = _compute_t_quantile(count) * math.sqrt((1 / count + test_share) * float(np.var(values, ddof=1)))
    return Interval(float(np.mean(values)), half, count)


def compute_bootstrap_interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    """Return ``value`` with its normal interval; the standard error is the deviation of ``resampled`` values (n,)."""
    half = _compute_normal_quantile() * float(np.std(resampled, ddof=1))
    return Interval(value, half, len(resampled))


def _compute_t_quantile(count: int) -> float:
    """Return the number of standard errors in half an interval of ``count`` values, by Student's t distribution."""
    # imported here, because SciPy comes with scikit-learn, and check_scikit_learn says in a sentence if that is missing
    from scipy import stats

    return float(stats.t.ppf(_UPPER, count - 1))


def _compute_normal_quantile() -> float:
    """Return the number of standard errors in half an interval, by the normal distribution."""
    return NormalDist().inv_cdf(_UPPER)
