"""The similarity of a small ViT in NumPy and float64, with which every framework and device has to agree.

The arithmetic is that of ``backends/*/models``, from parameters under timm's names.
Shapes: B images of H x W pixels, N patches, L = 1 + N tokens, D features, h heads.
"""

from __future__ import annotations

from math import erf

import numpy as np
from numpy.typing import NDArray

from ehm.config import TrainConfig
from ehm.storage.arrays import Arrays

__all__ = ["compute_similarity"]

Floats = NDArray[np.float64]


def compute_similarity(config: TrainConfig, model: Arrays, images: NDArray[np.uint8]) -> Floats:
    """Compute the symmetrised mean attention of the first ``mask.blocks`` blocks (Eq. 6): (B, H, W, 3) -> (B, N, N)."""
    weights = {name: array.astype(np.float64) for name, array in model.items()}
    heads = config.spec.heads
    assert isinstance(heads, int)  # a ViT
    tokens = _embed_patches(config, weights, images)
    attention = []
    for index in range(config.mask.blocks):
        tokens, probabilities = _run_block(weights, f"blocks.{index}.", tokens, heads)
        attention.append(probabilities)
    patches: Floats = np.mean(attention, axis=(0, 2))[:, 1:, 1:]
    return (patches + patches.swapaxes(1, 2)) / 2


def _embed_patches(config: TrainConfig, weights: dict[str, Floats], images: NDArray[np.uint8]) -> Floats:
    """Project normalised patches, put the class token before them and add positions: (B, H, W, 3) -> (B, L, D)."""
    pixels = (images / 255 - config.data.mean) / config.data.std
    rows, columns = config.spec.grid
    side = config.spec.patch_size
    # timm's kernel is (D, 3, side, side): colours come before the pixels of a patch
    patches = pixels.reshape(-1, rows, side, columns, side, 3).transpose(0, 1, 3, 5, 2, 4)
    kernel = weights["patch_embed.proj.weight"].reshape(config.spec.width, -1)
    tokens = patches.reshape(len(images), rows * columns, -1) @ kernel.T + weights["patch_embed.proj.bias"]
    class_token = np.broadcast_to(weights["cls_token"], (len(images), 1, config.spec.width))
    return np.concatenate([class_token, tokens], axis=1) + weights["pos_embed"]


def _run_block(weights: dict[str, Floats], name: str, tokens: Floats, heads: int) -> tuple[Floats, Floats]:
    """Run a block on (B, L, D); also returns the probabilities (B, h, L, L) of its attention."""

    def apply_linear(layer: str, x: Floats) -> Floats:
        return x @ weights[f"{name}{layer}.weight"].T + weights[f"{name}{layer}.bias"]

    def apply_norm(layer: str, x: Floats) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}{layer}.weight"] + weights[f"{name}{layer}.bias"]

    fused = apply_linear("attn.qkv", apply_norm("norm1", tokens)).reshape(*tokens.shape[:2], 3, heads, -1)
    q, k, v = fused.transpose(2, 0, 3, 1, 4)
    # float64 holds the exponentials of these small weights, so the maximum need not be subtracted
    exponents = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]))
    probabilities = exponents / exponents.sum(axis=-1, keepdims=True)
    tokens = tokens + apply_linear("attn.proj", (probabilities @ v).swapaxes(1, 2).reshape(tokens.shape))
    hidden = apply_linear("mlp.fc1", apply_norm("norm2", tokens))
    gelu = hidden * (1 + np.vectorize(erf)(hidden / np.sqrt(2))) / 2
    return tokens + apply_linear("mlp.fc2", gelu), probabilities
