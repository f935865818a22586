"""The losses of tasks in NumPy and float64.

Shapes: B images, C classes, D features of a descriptor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.reference.layers import Floats

__all__ = ["add_angular_margin", "compute_log_softmax", "cross_entropy", "cross_entropy_gradient", "measure_pixel_loss"]

_IGNORED = 255
"""The label of pixels that do not count."""


def compute_log_softmax(logits: Floats) -> Floats:
    """Return the logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    out: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out


def cross_entropy(logits: Floats, targets: NDArray[np.floating[Any]]) -> float:
    """Compute the mean cross entropy against distributions: (B, C), (B, C)."""
    return float(-(targets * compute_log_softmax(logits)).sum(axis=-1).mean())


def cross_entropy_gradient(logits: Floats, targets: NDArray[np.floating[Any]]) -> Floats:
    """Compute the gradient of :func:`cross_entropy` with respect to the logits: (B, C)."""
    probabilities = np.exp(compute_log_softmax(logits))
    # targets of mixed and smoothed labels sum to one, but for rounding
    gradient: Floats = (probabilities * targets.sum(axis=-1, keepdims=True) - targets) / len(logits)
    return gradient


def add_angular_margin(cosines: Floats, labels: NDArray[np.int64], margin: float) -> Floats:
    """Enlarge the angle to the right class by ``margin`` radians (ArcFace: Deng et al., 2019): (B, C), (B,).

    An angle that would pass pi goes on with a constant slope, as in the published code.
    """
    rows = np.arange(len(cosines))
    right = cosines[rows, labels]
    angle = np.arccos(right)
    enlarged = np.cos(angle + margin)
    beyond = right - np.sin(margin) * margin
    out = cosines.copy()
    out[rows, labels] = np.where(angle + margin < np.pi, enlarged, beyond)
    return out


def measure_pixel_loss(scores: Floats, labels: NDArray[np.uint8]) -> float:
    """Compute the cross entropy of scores (B, H, W, C) of pixels with labels (B, H, W), over the number of all."""
    counted = labels != _IGNORED
    likelihoods = compute_log_softmax(scores)[counted]
    chosen = likelihoods[np.arange(len(likelihoods)), labels[counted]]
    return float(-chosen.sum() / labels.size)
