"""AdamW in NumPy and float64 (Loshchilov and Hutter, 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehm.reference.layers import Floats

__all__ = ["AdamW"]

_EPSILON = 1e-8


@dataclass(frozen=True)
class AdamW:
    """One parameter under AdamW: its ``value``, the two moments, and the number of ``steps`` taken."""

    value: Floats
    first: Floats
    second: Floats
    steps: int

    def step(self, gradient: Floats, lr: float, weight_decay: float, betas: tuple[float, float]) -> AdamW:
        """Return the parameter after one step."""
        steps = self.steps + 1
        first = betas[0] * self.first + (1 - betas[0]) * gradient
        second = betas[1] * self.second + (1 - betas[1]) * np.square(gradient)
        direction = first / (1 - betas[0] ** steps) / (np.sqrt(second / (1 - betas[1] ** steps)) + _EPSILON)
        value = self.value * (1 - lr * weight_decay) - lr * direction
        return AdamW(value, first, second, steps)
