"""Probabilities of classes from a classifier's logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["compute_sigmoid", "compute_softmax"]


def compute_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return probabilities over the last axis, in float64; the largest logit is subtracted so that none overflows."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    probabilities: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities


def compute_sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the probability of each label by itself, in float64: 1 / (1 + exp(-x)), which overflows for no logit."""
    probabilities: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    return probabilities
