"""A Swin Transformer in NumPy and float64 (Liu et al., 2021): windows, their shift, and the merging of patches.

Shapes: B images, a map of h x w tokens of D features, nW windows of T tokens, n heads, N cells of the output grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import SwinSpec
from ehm.reference.layers import ACTIVATIONS, Floats, Weights, apply_linear, apply_norm, compute_softmax, embed_patches

__all__ = ["Swin"]

_EPSILON = 1e-5
"""Epsilon of all norms, torch's own."""
_APART = -100.0
"""Added to the scores of tokens that a shifted window joins, though they lie at opposite borders."""


@dataclass(frozen=True)
class Swin:
    """A Swin of ``spec`` with ``weights`` under timm's names."""

    spec: SwinSpec
    weights: Weights

    def embed(self, pixels: Floats) -> Floats:
        """Embed normalised pixels as tokens of the first stage: (B, H, W, 3) -> (B, h, w, D)."""
        spec = self.spec
        tokens = embed_patches(self.weights, pixels, spec.patch_size)
        rows = pixels.shape[1] // spec.patch_size
        normed = apply_norm(self.weights, "patch_embed.norm", tokens, _EPSILON)
        return normed.reshape(len(pixels), rows, -1, spec.width)

    def encode(self, tokens: Floats) -> Floats:
        """Pass tokens (B, h, w, D) through all blocks and the last norm: (B, N, D of the last stage)."""
        for _, stage, block in self._list_blocks():
            if block == 0 and stage > 0:
                tokens = self._merge_patches(stage, tokens)
            tokens, _ = self._run_block(stage, block, tokens)
        normed = apply_norm(self.weights, "norm", tokens, _EPSILON)
        return normed.reshape(len(tokens), -1, normed.shape[-1])

    def compute_cell_attention(self, tokens: Floats, blocks: int) -> Floats:
        """Average the attention that a token of a cell gives to each cell, over the first ``blocks``: -> (B, N, N)."""
        cells = self.spec.grid[0] * self.spec.grid[1]
        total = np.zeros((len(tokens), cells, cells))
        for number, stage, block in self._list_blocks():
            if number == blocks:
                break
            if block == 0 and stage > 0:
                tokens = self._merge_patches(stage, tokens)
            owners, tokens_per_cell = self._assign_cells(tokens)
            tokens, (probabilities, places) = self._run_block(stage, block, tokens)
            for window, window_places in enumerate(places):
                owner = owners[window_places]
                attention = probabilities[:, window].mean(axis=1)
                # the cell of each token of the window as zeros and a one: (T, N)
                belongs = (owner[:, None] == np.arange(cells)).astype(np.float64)
                total += belongs.T @ attention @ belongs / tokens_per_cell
        return total / blocks

    def _list_blocks(self) -> Iterator[tuple[int, int, int]]:
        """Yield the number of each block in all, its stage, and its number there."""
        number = 0
        for stage, depth in enumerate(self.spec.depths):
            for block in range(depth):
                yield number, stage, block
                number += 1

    def _assign_cells(self, tokens: Floats) -> tuple[NDArray[np.int64], float]:
        """Return the output cell that each place of the map lies in (h * w,), and the places of a cell."""
        height, width = tokens.shape[1:3]
        down, across = self.spec.grid
        rows = np.arange(height) // (height // down)
        columns = np.arange(width) // (width // across)
        return (rows[:, None] * across + columns).ravel(), height * width / (down * across)

    def _merge_patches(self, stage: int, tokens: Floats) -> Floats:
        """Merge 2 x 2 tokens: (B, h, w, D) -> (B, h / 2, w / 2, 2D)."""
        parts = [tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        name = f"layers.{stage}.downsample."
        merged = apply_norm(self.weights, f"{name}norm", np.concatenate(parts, axis=-1), _EPSILON)
        return apply_linear(self.weights, f"{name}reduction", merged)

    def _run_block(self, stage: int, block: int, tokens: Floats) -> tuple[Floats, tuple[Floats, NDArray[np.int64]]]:
        """Run a block on (B, h, w, D).

        Also returns the attention (B, nW, n, T, T) of its windows, and the places of their tokens in the map (nW, T).
        """
        weights = self.weights
        name = f"layers.{stage}.blocks.{block}."
        batch, height, width, features = tokens.shape
        places, regions = self._divide_map(stage, block, height, width)
        flat = tokens.reshape(batch, -1, features)
        windows = apply_norm(weights, f"{name}norm1", flat, _EPSILON)[:, places]
        fused = apply_linear(weights, f"{name}attn.qkv", windows)
        q, k, v = fused.reshape(*fused.shape[:3], 3, self.spec.heads[stage], -1).transpose(3, 0, 1, 4, 2, 5)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + self._find_bias(stage, name)
        apart = regions[:, :, None] != regions[:, None]
        probabilities = compute_softmax(scores + _APART * apart[:, None])
        mixed = apply_linear(weights, f"{name}attn.proj", (probabilities @ v).swapaxes(2, 3).reshape(windows.shape))
        branch = np.empty_like(flat)
        branch[:, places] = mixed
        flat = flat + branch
        hidden = apply_linear(weights, f"{name}mlp.fc1", apply_norm(weights, f"{name}norm2", flat, _EPSILON))
        flat = flat + apply_linear(weights, f"{name}mlp.fc2", ACTIVATIONS["gelu"](hidden))
        return flat.reshape(tokens.shape), (probabilities, places)

    def _divide_map(
        self, stage: int, block: int, height: int, width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the places in a map of the tokens of each window, and the region that each belongs to: (nW, T) each.

        Every second block moves its windows by half of their side, unless one window holds the whole side. Tokens of
        one region were neighbours before. Windows have to divide the map.
        """
        shifted = []
        regions = []
        sides = self.spec.windows[stage]
        for side, length in zip(sides, (height, width), strict=True):
            shift = side // 2 if block % 2 and side < length else 0
            shifted.append((np.arange(length) + shift) % length)
            # the last window holds what was moved over the border: its two parts are regions of their own
            wrapped = np.arange(length) >= length - shift
            regions.append(np.where(wrapped, length, np.arange(length) // side))
        places = shifted[0][:, None] * width + shifted[1]
        region = regions[0][:, None] * (width + 1) + regions[1]
        windows = []
        for values in (places, region):
            cut = values.reshape(height // sides[0], sides[0], width // sides[1], sides[1])
            windows.append(cut.swapaxes(1, 2).reshape(-1, sides[0] * sides[1]))
        return windows[0], windows[1]

    def _find_bias(self, stage: int, name: str) -> Floats:
        """Return the biases of relative positions within a window: (n, T, T)."""
        down, across = self.spec.windows[stage]
        rows, columns = (axis.ravel() for axis in np.mgrid[:down, :across])
        row_distances = rows[:, None] - rows + down - 1
        column_distances = columns[:, None] - columns + across - 1
        table = self.weights[f"{name}attn.relative_position_bias_table"]
        bias: Floats = table[row_distances * (2 * across - 1) + column_distances].transpose(2, 0, 1)
        return bias
