"""The discrete VAE of ``ehm tokenizer train`` in NumPy and float64: its visual tokens and its loss.

Shapes: B images of H x W pixels, D features, K codes, (h, w) = (H, W) / stride.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.reference.layers import Floats, Weights, compute_softmax
from ehm.reference.maps import apply_batch_norm, convolve, convolve_transposed

__all__ = ["compute_code_logits", "compute_tokenizer_loss", "find_stride", "find_tokens"]

_EPSILON = 1e-5


def find_stride(weights: Weights) -> int:
    """Return the pixels from one token to the next: each convolution of side 4 halves the image."""
    halvings = 0
    for name, array in weights.items():
        if name.startswith("encoder.") and array.shape[2:] == (4, 4):
            halvings += 1
    return 2**halvings


def find_tokens(weights: Weights, images: Floats) -> NDArray[np.int64]:
    """Return the best code of each place, row by row: (B, H, W, 3) in [0, 1] -> (B, h * w)."""
    return compute_code_logits(weights, images, training=False).argmax(axis=-1).reshape(len(images), -1)


def compute_code_logits(weights: Weights, images: Floats, training: bool) -> Floats:
    """Compute how well each code suits each place: (B, H, W, 3) in [0, 1] -> (B, h, w, K).

    In ``training`` features are normalised by the moments of the batch, else by those that were stored.
    """
    x = 2 * images - 1
    layer = 0
    while f"encoder.{layer}.weight" in weights:  # a ReLU stands between two
        if layer:
            x = np.maximum(x, 0)
        x = convolve(weights, f"encoder.{layer}", x, stride=2)
        layer += 2
    layer -= 1
    for residual in (layer, layer + 1):
        x = _add_residual(weights, f"encoder.{residual}", x)
    norm = f"encoder.{layer + 3}"
    x = np.maximum(x, 0)
    if training:
        x = apply_batch_norm(weights, norm, x)
    else:
        x = (x - weights[f"{norm}.running_mean"]) / np.sqrt(weights[f"{norm}.running_var"] + _EPSILON)
    return convolve(weights, f"encoder.{layer + 4}", x)


def compute_tokenizer_loss(weights: Weights, images: Floats, temperature: float) -> tuple[float, float]:
    """Compute the mean squared error and the divergence of the codes from the uniform distribution, in nats.

    Codes are relaxed at ``temperature`` without noise, which nothing is left of if logits or temperature are large.
    """
    logits = compute_code_logits(weights, images, training=True)
    features = compute_softmax(logits / temperature) @ weights["codebook"]
    for residual in (0, 1):
        features = _add_residual(weights, f"decoder.{residual}", features)
    layer = 2
    while f"decoder.{layer}.weight" in weights:
        if layer > 2:
            features = np.maximum(features, 0)
        features = convolve_transposed(weights, f"decoder.{layer}", features, border=1)
        layer += 2
    error = float(np.square((features + 1) / 2 - images).mean())
    shares = compute_softmax(logits).mean(axis=(0, 1, 2))
    used = shares[shares > 0]
    return error, float((used * np.log(len(shares) * used)).sum())


def _add_residual(weights: Weights, name: str, x: Floats) -> Floats:
    path = convolve(weights, f"{name}.path.1", np.maximum(x, 0))
    return x + convolve(weights, f"{name}.path.3", np.maximum(path, 0))
