"""The visual tokens of a discrete VAE of ``ehm tokenizer train`` in NumPy and float64.

Shapes: B images of H x W pixels, D channels, K codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.reference.layers import Floats, Weights

__all__ = ["find_stride", "find_tokens"]


def find_stride(weights: Weights) -> int:
    """Return the pixels from one token to the next: each convolution of side 4 halves the image."""
    halvings = 0
    for name, array in weights.items():
        if name.startswith("encoder.") and array.shape[2:] == (4, 4):
            halvings += 1
    return 2**halvings


def find_tokens(weights: Weights, images: Floats) -> NDArray[np.int64]:
    """Return the best code of each place, row by row: (B, H, W, 3) in [0, 1] -> (B, h * w)."""
    x = 2 * images - 1
    layer = 0
    while f"encoder.{layer}.weight" in weights:  # a ReLU stands between two
        if layer:
            x = np.maximum(x, 0)
        x = _convolve(weights, f"encoder.{layer}", x, stride=2)
        layer += 2
    layer -= 1
    for residual in (layer, layer + 1):
        path = _convolve(weights, f"encoder.{residual}.path.1", np.maximum(x, 0))
        x = x + _convolve(weights, f"encoder.{residual}.path.3", np.maximum(path, 0))
    norm = f"encoder.{layer + 3}"
    variance = weights[f"{norm}.running_var"] + 1e-5
    x = (np.maximum(x, 0) - weights[f"{norm}.running_mean"]) / np.sqrt(variance)
    logits = _convolve(weights, f"encoder.{layer + 4}", x)
    return logits.argmax(axis=-1).reshape(len(images), -1)


def _convolve(weights: Weights, name: str, x: Floats, stride: int = 1) -> Floats:
    """Convolve (B, H, W, C) with the kernel (E, C, k, k) of ``name``; its borders keep or halve the size."""
    kernel = weights[f"{name}.weight"]
    side = kernel.shape[-1]
    border = (side - 1) // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))[:, ::stride, ::stride]
    out: Floats = np.einsum("bhwcij,ecij->bhwe", windows, kernel, optimize=True) + weights[f"{name}.bias"]
    return out
