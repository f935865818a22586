"""Losses and gradients of a learner beside those of NumPy's float64.

A gradient needs no method of its own: after AdamW's first step, its first moment is (1 - beta1) times the gradient.
NumPy has no gradients, but the slope of its loss along a direction, by a central difference. The direction is the
gradient to be checked and a random one, both of length 1: their sum finds a wrong length and a wrong direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.reference.layers import Floats
from ehm.storage.arrays import Arrays
from ehm.verification.check import Measurement

__all__ = [
    "TOLERANCES",
    "Tolerances",
    "compare_gradients",
    "compare_loss_with_numpy",
    "read_gradients",
    "read_moments",
    "relative_error",
]

_STEP = 1e-7
"""Half of the width of a central difference, as a share of a parameter's length.

Wider ones meet the corners of losses that are magnitudes.
"""
_SMALLEST = 1e-3
"""Share of the length of all gradients together below which a parameter's own is not told from rounding."""


@dataclass(frozen=True)
class Tolerances:
    """The largest relative errors that rounding explains, about ten times those of a CPU."""

    similarity: float
    loss: float
    slope: float
    gradient: float


TOLERANCES = {
    "float32": Tolerances(1e-3, 1e-4, 2e-3, 1e-2),
    "bfloat16": Tolerances(0.15, 0.03, 0.2, 0.5),
    "float16": Tolerances(0.05, 0.01, 0.05, 0.2),
}
"""Tolerances by the type of a step.

Those of float32 admit kernels that multiply in TF32 or HF32, whose products are off by about 5e-4.
"""


def compare_loss_with_numpy(
    compute_loss: Callable[[Mapping[str, Floats]], float],
    weights: Mapping[str, Floats],
    loss: float,
    gradients: Arrays,
    tolerances: Tolerances,
) -> Iterator[Measurement]:
    """Compare a loss and its gradients with NumPy's loss of the same weights, and with its slopes."""
    expected = compute_loss(weights)
    yield Measurement("loss", abs(loss - expected) / abs(expected), tolerances.loss, "NumPy")
    name, error = _compare_slopes(compute_loss, weights, gradients)
    yield Measurement("gradients", error, tolerances.slope, f"NumPy; {name} differs most")


def compare_gradients(found: Arrays, expected: Arrays) -> tuple[str, float]:
    """Return the parameter whose gradient differs most, and by which share of its largest entry.

    Raises ValueError if one of the two lacks a gradient.
    """
    if found.keys() != expected.keys():
        missing = sorted(found.keys() ^ expected.keys())
        raise ValueError(f"only one of the devices has gradients of {', '.join(missing[:3])}")
    errors = {}
    total = max(float(np.abs(value).max()) for value in expected.values())
    for name, value in expected.items():
        size = max(float(np.abs(value).max()), _SMALLEST * total)
        errors[name] = float(np.abs(found[name] - value).max()) / size
    return _find_worst(errors)


def read_gradients(optimizer: Arrays, betas: tuple[float, float]) -> Arrays:
    """Return the gradients of the first step, by parameter, from the optimiser's arrays after it."""
    share = 1 - betas[0]
    return {name: moment / share for name, moment in read_moments(optimizer, "exp_avg").items()}


def read_moments(optimizer: Arrays, slot: str) -> Arrays:
    """Return the arrays of the optimiser's ``slot``, for example ``exp_avg``, by parameter."""
    moments = {}
    for key, value in optimizer.items():
        name, _, found = key.rpartition("/")
        if found == slot:
            moments[name] = value
    return moments


def relative_error(
    measured: NDArray[np.floating[Any]],
    expected: NDArray[np.floating[Any]],
    origin: NDArray[np.floating[Any]] | None = None,
) -> float:
    """Return the largest difference as a share of the largest distance from ``origin``, or from the mean."""
    if measured.shape != expected.shape:
        raise ValueError(f"shape {measured.shape} instead of {expected.shape}")
    start = expected.mean() if origin is None else origin.astype(np.float64)
    difference = np.abs(measured.astype(np.float64) - expected).max()
    return float(difference / np.abs(expected - start).max())


def _compare_slopes(
    compute_loss: Callable[[Mapping[str, Floats]], float], weights: Mapping[str, Floats], gradients: Arrays
) -> tuple[str, float]:
    """Return the parameter whose slope is most wrong, and its error as a share of its gradient's length.

    The slopes are those along each parameter's gradient plus a random direction.
    """
    lengths = {name: float(np.linalg.norm(value.astype(np.float64))) for name, value in gradients.items()}
    smallest = _SMALLEST * float(np.linalg.norm(list(lengths.values())))
    errors = {}
    for number, (name, gradient) in enumerate(gradients.items()):
        random = np.random.default_rng([13, number]).normal(size=gradient.shape)
        direction = random / np.linalg.norm(random)
        if lengths[name] > 0:
            direction = direction + gradient / lengths[name]
        step = _STEP * max(float(np.linalg.norm(weights[name])), 1e-3)
        ahead = compute_loss({**weights, name: weights[name] + step * direction})
        behind = compute_loss({**weights, name: weights[name] - step * direction})
        slope = (ahead - behind) / (2 * step)
        errors[name] = abs(float((gradient * direction).sum()) - slope) / max(lengths[name], smallest)
    return _find_worst(errors)


def _find_worst(errors: Mapping[str, float]) -> tuple[str, float]:
    """Return the name and the value of the largest error; one that is no number is the largest."""
    names = list(errors)
    worst = names[int(np.argmax(list(errors.values())))]
    return worst, errors[worst]
