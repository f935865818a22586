"""Layers of maps of features for dense prediction: convolutions, batch norm over processes, resizing.

Only operators that MindSpore has on its CPU and on its Ascend target. ``dtype`` is the type in which convolutions
multiply; norms, means and resizing are float32. Parameters have torch's names.

Shapes: B images, C and D channels, maps of h x w places.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from numpy.typing import NDArray

from ehm.backends.base import Processes
from ehm.backends.mindspore.models.blocks import apply_linear
from ehm.data.bilinear import interpolate_side

__all__ = [
    "BatchNorm",
    "Convolution",
    "Doubling",
    "Gelu",
    "Pooling",
    "SideProducts",
    "build_layer",
    "build_resize",
    "multiply_sides",
]

_MOMENTUM = 0.1
_EPSILON = 1e-5


class Convolution(nn.Cell):
    """A convolution with an odd kernel that keeps the size of a map: (B, C, h, w) -> (B, D, h, w)."""

    def __init__(self, channels: int, width: int, kernel: int, dtype: Any, weights: NDArray[Any], bias: bool) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(weights.astype(np.float32).reshape(width, channels, kernel, kernel)))
        self.has_bias = bias
        if bias:
            self.bias = Parameter(Tensor(np.zeros(width, np.float32)))
        self.convolve = ops.Conv2D(width, kernel, pad_mode="pad", pad=kernel // 2)
        self.dtype = dtype

    def construct(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, D, h, w), float32."""
        y = self.convolve(x.astype(self.dtype), self.weight.astype(self.dtype)).astype(ms.float32)
        if self.has_bias:
            y = y + self.bias.reshape((1, -1, 1, 1))
        return y


class Doubling(nn.Cell):
    """A transposed convolution that doubles the sides of a map: (B, C, h, w) -> (B, C, 2 h, 2 w).

    Its windows do not overlap, so that it is a matrix product.
    """

    def __init__(self, width: int, dtype: Any, rng: np.random.Generator) -> None:
        super().__init__()
        limit = 1 / math.sqrt(4 * width)  # torch's own range
        weight = rng.uniform(-limit, limit, (width, width, 2, 2))
        self.weight = Parameter(Tensor(weight.astype(np.float32)))
        self.bias = Parameter(Tensor(rng.uniform(-limit, limit, width).astype(np.float32)))
        self.dtype = dtype

    def construct(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2 h, 2 w), float32."""
        batch, width, height, across = x.shape
        matrix = self.weight.reshape((width, 4 * width)).swapaxes(0, 1)
        places = apply_linear(x.transpose((0, 2, 3, 1)), matrix, None, self.dtype).astype(ms.float32)
        cells = places.reshape((batch, height, across, width, 2, 2)).transpose((0, 3, 1, 4, 2, 5))
        return cells.reshape((batch, width, 2 * height, 2 * across)) + self.bias.reshape((1, -1, 1, 1))


class Gelu(nn.Cell):
    """An exact GELU."""

    def construct(self, x: Tensor) -> Tensor:
        """Apply it to each number."""
        return ops.gelu(x, approximate="none")


class Pooling(nn.Cell):
    """The maximum of the places that a map's sides are divided by: (B, C, h, w) -> (B, C, h / n, w / n)."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.pool = ops.MaxPool(kernel_size=places, strides=places)

    def construct(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h / n, w / n)."""
        return self.pool(x)


class BatchNorm(nn.Cell):
    """Batch norm of maps, (B, C, h, w) -> (B, C, h, w), in float32, with its moments taken over all ``processes``.

    In training it takes the moments of the batch, which the running ones approach by a tenth; in evaluation it takes
    the running ones.
    """

    def __init__(self, width: int, processes: Processes) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(width, np.float32)))
        self.bias = Parameter(Tensor(np.zeros(width, np.float32)))
        self.running_mean = Parameter(Tensor(np.zeros(width, np.float32)), requires_grad=False)
        self.running_var = Parameter(Tensor(np.ones(width, np.float32)), requires_grad=False)
        self.num_batches_tracked = Parameter(Tensor(0, ms.int64), requires_grad=False)
        self.size = processes.size
        if processes.size > 1:
            self.sum_over_processes = ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        mean = self.running_mean
        variance = self.running_var
        if self.training:
            mean = self._average(x)
            variance = self._average(ops.square(x - mean.reshape((1, -1, 1, 1))))
            # running moments are unbiased, those of the batch are not, as in torch
            count = x.shape[0] * x.shape[2] * x.shape[3] * self.size
            unbiased = variance * (count / max(count - 1, 1))
            kept = 1 - _MOMENTUM
            ops.assign(self.running_mean, self.running_mean * kept + ops.stop_gradient(mean) * _MOMENTUM)
            ops.assign(self.running_var, self.running_var * kept + ops.stop_gradient(unbiased) * _MOMENTUM)
            ops.assign_add(self.num_batches_tracked, 1)
        factor = self.weight / ops.sqrt(variance + _EPSILON)
        shift = self.bias - mean * factor
        return x * factor.reshape((1, -1, 1, 1)) + shift.reshape((1, -1, 1, 1))

    def _average(self, x: Tensor) -> Tensor:
        """Average over images, places and processes: (B, C, h, w) -> (C,)."""
        mean = x.mean(axis=(0, 2, 3))
        if self.size > 1:
            mean = self.sum_over_processes(mean) / self.size
        return mean


class SideProducts(nn.Cell):
    """Products of both sides of a map with matrices, (B, C, h, w) -> (B, C, h', w'), in float32.

    Resizing and adaptive means are such products: ``down`` is (h', h), ``across`` (w', w).
    """

    def __init__(self, down: NDArray[np.float32], across: NDArray[np.float32]) -> None:
        super().__init__()
        self.down = Tensor(down)
        self.across = Tensor(across)

    def construct(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h', w')."""
        return multiply_sides(x, self.down, self.across)


def multiply_sides(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Multiply both sides of a map: (B, C, h, w), (h', h), (w', w) -> (B, C, h', w'), in float32."""
    wide = _multiply_last(x.astype(ms.float32), across)
    return _multiply_last(wide.swapaxes(2, 3), down).swapaxes(2, 3)


def build_resize(size: tuple[int, int], wanted: tuple[int, int]) -> nn.Cell:
    """Return a cell that resizes maps of ``size`` = (h, w) bilinearly to ``wanted``, with aligned pixel borders."""
    return SideProducts(interpolate_side(size[0], wanted[0]), interpolate_side(size[1], wanted[1]))


def build_layer(
    channels: int, width: int, kernel: int, dtype: Any, processes: Processes, rng: np.random.Generator
) -> nn.SequentialCell:
    """Return a convolution without bias, its batch norm and a ReLU: (B, C, h, w) -> (B, D, h, w)."""
    deviation = math.sqrt(2 / (width * kernel * kernel))  # He et al., 2015, by the outputs
    weights = deviation * rng.standard_normal((width, channels, kernel, kernel))
    convolution = Convolution(channels, width, kernel, dtype, weights, bias=False)
    return nn.SequentialCell(convolution, BatchNorm(width, processes), _Relu())


class _Relu(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return ops.relu(x)


def _multiply_last(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the last axis: (B, C, h, w), (w', w) -> (B, C, h, w')."""
    batch, channels, height, across = x.shape
    rows = ops.MatMul(transpose_b=True)(x.reshape((batch * channels * height, across)), matrix)
    return rows.reshape((batch, channels, height, matrix.shape[0]))
