"""SGD with momentum, and LARS (You et al., 2017), in NumPy and float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehm.reference.layers import Floats

__all__ = ["Momentum"]

_MOMENTUM = 0.9
_TRUST = 0.001
"""LARS's share of a matrix's length that a step may change."""


@dataclass(frozen=True)
class Momentum:
    """One parameter under SGD, or under LARS if ``adapts``: its ``value`` and the ``velocity``, None before a step."""

    value: Floats
    velocity: Floats | None = None
    adapts: bool = False

    def step(self, gradient: Floats, lr: float, weight_decay: float) -> Momentum:
        """Return the parameter after one step; LARS adapts the steps of matrices alone."""
        change = gradient + weight_decay * self.value
        if self.adapts and self.value.ndim > 1:
            length = np.linalg.norm(self.value)
            change = change * _TRUST * length / (np.linalg.norm(gradient) + weight_decay * length)
        velocity: Floats = change if self.velocity is None else _MOMENTUM * self.velocity + change
        return Momentum(self.value - lr * velocity, velocity, self.adapts)
