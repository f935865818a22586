"""The layers that work on maps, in NumPy and float64: (B, h, w, D) -> (B, h, w, E), channels last.

Kernels are torch's: (E, D, k, k), of transposed convolutions (D, E, k, k).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.reference.layers import Floats, Weights

__all__ = [
    "apply_batch_norm",
    "average_parts",
    "convolve",
    "convolve_transposed",
    "pool_maximum",
    "resize_bilinear",
    "run_convolution_layer",
]

_EPSILON = 1e-5


def convolve(weights: Weights, name: str, x: Floats, stride: int = 1) -> Floats:
    """Convolve with the kernel of ``name``, and add its bias if it has one; borders keep the size or halve it."""
    kernel = weights[f"{name}.weight"]
    side = kernel.shape[-1]
    border = (side - 1) // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))[:, ::stride, ::stride]
    flat = windows.reshape(*windows.shape[:3], -1)
    out: Floats = flat @ kernel.reshape(len(kernel), -1).T
    return _add_bias(weights, name, out)


def convolve_transposed(weights: Weights, name: str, x: Floats, stride: int = 2, border: int = 0) -> Floats:
    """Spread each place over a square of the kernel's side, ``stride`` apart, and cut ``border`` off: h -> about 2h."""
    kernel = weights[f"{name}.weight"]
    side = kernel.shape[-1]
    batch, height, width, _ = x.shape
    out = np.zeros((batch, (height - 1) * stride + side, (width - 1) * stride + side, kernel.shape[1]))
    for row in range(side):
        for column in range(side):
            rows = slice(row, row + stride * height, stride)
            columns = slice(column, column + stride * width, stride)
            out[:, rows, columns] += x @ kernel[:, :, row, column]
    inner: Floats = out[:, border : out.shape[1] - border, border : out.shape[2] - border]
    return _add_bias(weights, name, inner)


def apply_batch_norm(weights: Weights, name: str, x: Floats, epsilon: float = _EPSILON) -> Floats:
    """Give each channel of a batch mean 0 and variance 1, as in training, and scale it if ``name`` has factors."""
    places = tuple(range(x.ndim - 1))
    centred = x - x.mean(axis=places)
    out: Floats = centred / np.sqrt(np.square(centred).mean(axis=places) + epsilon)
    if f"{name}.weight" in weights:
        out = out * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return out


def run_convolution_layer(weights: Weights, name: str, x: Floats) -> Floats:
    """Apply convolution, batch norm and ReLU."""
    return np.maximum(apply_batch_norm(weights, f"{name}.1", convolve(weights, f"{name}.0", x)), 0)


def pool_maximum(x: Floats, side: int) -> Floats:
    """Take the largest of each square of places."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // side, side, width // side, side, channels)
    largest: Floats = squares.max(axis=(2, 4))
    return largest


def average_parts(x: Floats, parts: int) -> Floats:
    """Average each of ``parts`` x ``parts`` parts of a map, which may share borders (``adaptive_avg_pool2d``)."""
    out = np.empty((len(x), parts, parts, x.shape[-1]))
    for row in range(parts):
        for column in range(parts):
            rows = _cut_part(x.shape[1], parts, row)
            columns = _cut_part(x.shape[2], parts, column)
            out[:, row, column] = x[:, rows, columns].mean(axis=(1, 2))
    return out


def resize_bilinear(x: Floats, size: tuple[int, int]) -> Floats:
    """Enlarge a map to ``size`` = (h, w) with aligned pixel borders."""
    down = _weigh_neighbours(x.shape[1], size[0])
    across = _weigh_neighbours(x.shape[2], size[1])
    out: Floats = np.einsum("ij,bjkc,lk->bilc", down, x, across, optimize=True)
    return out


def _add_bias(weights: Weights, name: str, out: Floats) -> Floats:
    bias = weights.get(f"{name}.bias")
    return out if bias is None else out + bias


def _cut_part(length: int, parts: int, part: int) -> slice:
    return slice(part * length // parts, -(-(part + 1) * length // parts))


def _weigh_neighbours(length: int, wanted: int) -> NDArray[np.float64]:
    """Return the weights (wanted, length) of a line's places in each place of the longer line."""
    places = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0, length - 1)
    weights: NDArray[np.float64] = np.clip(1 - np.abs(places[:, None] - np.arange(length)), 0, None)
    return weights
