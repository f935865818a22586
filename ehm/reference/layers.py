"""The layers that encoders are made of, in NumPy and float64: (..., D) -> (..., D) but where it is said otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numba import float64, vectorize
from numpy.typing import NDArray

from ehm.storage.arrays import Arrays

__all__ = [
    "ACTIVATIONS",
    "Floats",
    "Weights",
    "apply_linear",
    "apply_norm",
    "compute_softmax",
    "embed_patches",
    "normalise",
    "normalise_pixels",
    "split_patches",
    "widen",
]

Floats = NDArray[np.float64]
Weights = Mapping[str, Floats]


def widen(arrays: Arrays) -> dict[str, Floats]:
    """Return the arrays in float64."""
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def apply_linear(weights: Weights, name: str, x: Floats) -> Floats:
    """Apply the linear layer ``name``, with its bias if it has one: (..., D) -> (..., E)."""
    out = x @ weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    return out if bias is None else out + bias


def normalise(x: Floats, epsilon: float) -> Floats:
    """Give features (..., D) mean 0 and variance 1."""
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled: Floats = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    return scaled


def apply_norm(weights: Weights, name: str, x: Floats, epsilon: float) -> Floats:
    """Apply the norm ``name``: layer normalisation, or division by the root mean square if it has no bias."""
    if f"{name}.bias" in weights:
        return normalise(x, epsilon) * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon) * weights[f"{name}.weight"]


def compute_softmax(scores: Floats) -> Floats:
    """Return the softmax over the last axis."""
    exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: Floats = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities


def normalise_pixels(images: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> Floats:
    """Normalise bytes (B, H, W, 3) by the mean and the standard deviation of each colour."""
    pixels: Floats = (images / 255 - np.array(mean)) / np.array(std)
    return pixels


def split_patches(pixels: Floats, side: int) -> Floats:
    """Cut (B, H, W, 3) into patches row by row: (B, N, side, side, 3)."""
    batch, height, width, colours = pixels.shape
    cut = pixels.reshape(batch, height // side, side, width // side, side, colours)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side, side, colours)


def embed_patches(weights: Weights, pixels: Floats, side: int) -> Floats:
    """Project patches of normalised pixels to tokens: (B, H, W, 3) -> (B, N, D)."""
    patches = split_patches(pixels, side)
    # the kernel is (D, 3, side, side): colours come before the pixels of a patch
    flat = patches.transpose(0, 1, 4, 2, 3).reshape(*patches.shape[:2], -1)
    kernel = weights["patch_embed.proj.weight"]
    tokens: Floats = flat @ kernel.reshape(len(kernel), -1).T
    bias = weights.get("patch_embed.proj.bias")
    return tokens if bias is None else tokens + bias


@vectorize([float64(float64)])  # type: ignore[untyped-decorator, unused-ignore]
def _gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def _gelu_tanh(x: Floats) -> Floats:
    cubic: Floats = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return x * (1 + np.tanh(cubic)) / 2


def _quick_gelu(x: Floats) -> Floats:
    return x / (1 + np.exp(-1.702 * x))


def _silu(x: Floats) -> Floats:
    return x / (1 + np.exp(-x))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "swiglu": _silu,
    "swiglu_packed": _silu,
}
"""The function of each kind of MLP (``model.form.mlp``)."""
