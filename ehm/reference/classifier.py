"""Classifiers and descriptors on a ViT in NumPy and float64: heads, and low-rank updates of the encoder.

Shapes: B images of H x W pixels, N patches, L tokens, D features, C classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import VitSpec
from ehm.reference.layers import Floats, Weights, apply_linear, apply_norm
from ehm.reference.losses import add_angular_margin
from ehm.reference.vit import Vit

__all__ = ["compute_class_logits", "compute_margin_logits", "merge_updates", "pool_features", "take_encoder"]

_A = ".lora_A.default.weight"
_B = ".lora_B.default.weight"
_SMALLEST = 1e-6
"""Smallest feature that the generalised mean takes."""


def take_encoder(weights: Weights, prefix: str) -> dict[str, Floats]:
    """Return the weights below ``prefix``, by their names without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def pool_features(spec: VitSpec, weights: Weights, pixels: Floats, pool: Literal["avg", "token"]) -> Floats:
    """Compute what the head of a classifier sees: normalised (B, H, W, 3) -> (B, D).

    The mean of the patch tokens, which the last norm follows, or the class token behind it.
    """
    tokens = _run_vit(spec, weights, pixels)
    if pool == "token":
        return apply_norm(weights, "norm", tokens[:, 0], spec.form.norm_epsilon)
    mean = tokens[:, spec.form.prefix_tokens :].mean(axis=1)
    return apply_norm(weights, "fc_norm", mean, spec.form.norm_epsilon)


def compute_class_logits(spec: VitSpec, weights: Weights, pixels: Floats, pool: Literal["avg", "token"]) -> Floats:
    """Compute the logits of a fine-tuned ViT: normalised (B, H, W, 3) -> (B, C)."""
    return apply_linear(weights, "head", pool_features(spec, weights, pixels, pool))


def compute_margin_logits(
    spec: VitSpec, weights: Weights, pixels: Floats, labels: NDArray[np.int64], margin: float
) -> Floats:
    """Compute ArcFace's logits of descriptors by the generalised mean and whitening: (B, H, W, 3), (B,) -> (B, C)."""
    encoder = take_encoder(weights, "encoder.")
    tokens = apply_norm(encoder, "norm", _run_vit(spec, encoder, pixels), spec.form.norm_epsilon)
    patches = np.maximum(tokens[:, spec.form.prefix_tokens :], _SMALLEST)
    power = weights["power"]
    pooled = (patches**power).mean(axis=1) ** (1 / power)
    descriptors = _shorten(apply_linear(weights, "whitening", pooled))
    cosines: Floats = descriptors @ _shorten(weights["arcface.weight"]).T
    return weights["arcface.scale"] * add_angular_margin(cosines, labels, margin)


def merge_updates(weights: Weights, factor: float) -> dict[str, Floats]:
    """Add each layer's low-rank update, ``factor`` times B A, to its weight."""
    merged = {name: value for name, value in weights.items() if not name.endswith((_A, _B))}
    for name, first in weights.items():
        if name.endswith(_A):
            layer = name.removesuffix(_A)
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + factor * weights[f"{layer}{_B}"] @ first
    return merged


def _run_vit(spec: VitSpec, weights: Weights, pixels: Floats) -> Floats:
    """Compute the tokens behind the last block: (B, L, D)."""
    vit = Vit(spec, weights)
    outputs, _ = vit.run_blocks(vit.embed(pixels))
    return outputs[-1]


def _shorten(vectors: Floats) -> Floats:
    """Divide vectors (..., D) by their lengths."""
    shortened: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return shortened
