"""The similarity of a small ViT in NumPy and float64: what every framework and device has to agree with.

The arithmetic is that of ``backends/*/models``, from parameters under timm's names.
Shapes: B images of H x W pixels, N patches, L = 1 + N tokens, D features, h heads.
"""

from __future__ import annotations

from math import erf

import numpy as np
from numpy.typing import NDArray

from ehm.config import TrainConfig
from ehm.storage.arrays import Arrays

__all__ = ["similarity"]

Floats = NDArray[np.float64]


def similarity(config: TrainConfig, model: Arrays, images: NDArray[np.uint8]) -> Floats:
    """Symmetrised mean attention of the first ``config.mask.blocks`` blocks (Eq. 6): (B, H, W, 3) -> (B, N, N)."""
    weights, heads = {name: array.astype(np.float64) for name, array in model.items()}, config.spec.heads
    assert isinstance(heads, int)
    tokens = _embed(config, weights, images)
    attention = []
    for index in range(config.mask.blocks):
        tokens, probs = _block(weights, f"blocks.{index}.", tokens, heads)
        attention.append(probs)
    patches: Floats = np.mean(attention, axis=(0, 2))[:, 1:, 1:]
    return (patches + patches.swapaxes(1, 2)) / 2


def _embed(config: TrainConfig, weights: dict[str, Floats], images: NDArray[np.uint8]) -> Floats:
    """Normalised patches, projected, with positions, after the class token: (B, H, W, 3) -> (B, L, D)."""
    pixels = (images / 255 - config.data.mean) / config.data.std
    (down, across), size = config.spec.grid, config.spec.patch_size
    patches = pixels.reshape(-1, down, size, across, size, 3).transpose(0, 1, 3, 5, 2, 4)
    kernel = weights["patch_embed.proj.weight"].reshape(config.spec.width, -1)
    tokens = patches.reshape(len(images), down * across, -1) @ kernel.T + weights["patch_embed.proj.bias"]
    first = np.broadcast_to(weights["cls_token"], (len(images), 1, config.spec.width))
    return np.concatenate([first, tokens], axis=1) + weights["pos_embed"]


def _block(weights: dict[str, Floats], name: str, tokens: Floats, heads: int) -> tuple[Floats, Floats]:
    """A block on (B, L, D), and the probabilities (B, h, L, L) of its attention."""

    def linear(layer: str, x: Floats) -> Floats:
        return x @ weights[f"{name}{layer}.weight"].T + weights[f"{name}{layer}.bias"]

    def norm(layer: str, x: Floats) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}{layer}.weight"] + weights[f"{name}{layer}.bias"]

    fused = linear("attn.qkv", norm("norm1", tokens)).reshape(*tokens.shape[:2], 3, heads, -1)
    q, k, v = fused.transpose(2, 0, 3, 1, 4)
    exponents = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]))
    probs = exponents / exponents.sum(axis=-1, keepdims=True)
    tokens = tokens + linear("attn.proj", (probs @ v).swapaxes(1, 2).reshape(tokens.shape))
    hidden = linear("mlp.fc1", norm("norm2", tokens))
    gelu = hidden * (1 + np.vectorize(erf)(hidden / np.sqrt(2))) / 2
    return tokens + linear("mlp.fc2", gelu), probs
