"""The linear classifier over an encoder's features, and the batch norm before it in a probe.

Shapes: B images, D features, C classes, maps of h x w places.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.blocks import Dense

__all__ = ["Standardise", "build_classifier"]


def build_classifier(width: int, classes: int, dtype: Any, probe: bool = False) -> nn.Cell:
    """Return a linear layer to ``classes``, with ``probe`` behind a batch norm: (B, width) -> (B, classes)."""
    linear = Dense(width, classes, dtype)
    if probe:
        return nn.SequentialCell(Standardise(width), linear)
    return linear


class Standardise(nn.Cell):
    """Batch norm without scale and offset, in float32: (B, D) -> (B, D) as in MAE's probe, or (B, D, h, w) alike.

    In training it takes the moments of the batch, over all places of a map, which the running ones approach by a tenth;
    in evaluation it takes the running ones.
    """

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.running_mean = Parameter(Tensor(np.zeros(width, np.float32)), requires_grad=False)
        self.running_var = Parameter(Tensor(np.ones(width, np.float32)), requires_grad=False)
        self.num_batches_tracked = Parameter(Tensor(0, ms.int64), requires_grad=False)
        self.epsilon = epsilon

    def construct(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D), or (B, D, h, w) -> (B, D, h, w)."""
        x = x.astype(ms.float32)
        axes = (0,) if x.ndim == 2 else (0, 2, 3)
        shape = (1, -1) if x.ndim == 2 else (1, -1, 1, 1)
        mean = self.running_mean.reshape(shape)
        variance = self.running_var.reshape(shape)
        if self.training:
            mean = x.mean(axis=axes, keep_dims=True)
            variance = ops.square(x - mean).mean(axis=axes, keep_dims=True)
            # running moments are unbiased, those of the batch are not, as in torch
            count = x.size // x.shape[1]
            unbiased = variance * (count / max(count - 1, 1))
            self._follow(self.running_mean, mean)
            self._follow(self.running_var, unbiased)
            ops.assign_add(self.num_batches_tracked, 1)
        return (x - mean) / ops.sqrt(variance + self.epsilon)

    def _follow(self, running: Parameter, moment: Tensor) -> None:
        """Let a running moment approach that of the batch."""
        ops.assign(running, running * 0.9 + ops.stop_gradient(moment).reshape(running.shape) * 0.1)
