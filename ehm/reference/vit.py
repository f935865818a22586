"""A ViT of any form in NumPy and float64: embedding, blocks, and the attention that hierarchies are made of.

Shapes: B images of H x W pixels, N patches, V visible ones, P tokens before them, L = P + V, D features, h heads of d.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.config import TrainConfig
from ehm.config.encoders import VitSpec, compute_relative_index
from ehm.reference.layers import (
    ACTIVATIONS,
    Floats,
    Weights,
    apply_linear,
    apply_norm,
    compute_softmax,
    embed_patches,
    normalise_pixels,
    widen,
)
from ehm.reference.rotary import compute_angles, rotate_features
from ehm.storage.arrays import Arrays

__all__ = ["Vit", "compute_similarity", "run_plain_block", "symmetrise"]

Indices = NDArray[np.int64]


def compute_similarity(config: TrainConfig, model: Arrays, images: NDArray[np.uint8]) -> Floats:
    """Compute the symmetrised mean attention of the first ``mask.blocks`` blocks (Eq. 6): (B, H, W, 3) -> (B, N, N)."""
    spec = config.spec
    assert isinstance(spec, VitSpec)
    vit = Vit(spec, widen(model))
    tokens = vit.embed(normalise_pixels(images, config.data.mean, config.data.std))
    _, attention = vit.run_blocks(tokens, blocks=config.mask.blocks)
    prefix = spec.form.prefix_tokens
    return symmetrise(np.mean(attention, axis=(0, 2))[:, prefix:, prefix:])


def symmetrise(matrix: Floats) -> Floats:
    """Return (A + A^T) / 2 of each of (B, N, N)."""
    return (matrix + matrix.swapaxes(1, 2)) / 2


@dataclass(frozen=True)
class Vit:
    """A ViT of ``spec`` with ``weights`` under timm's names, and one table of relative positions if it has any."""

    spec: VitSpec
    weights: Weights

    def embed(self, pixels: Floats) -> Floats:
        """Embed normalised pixels as patch tokens with their positions: (B, H, W, 3) -> (B, N, D)."""
        spec = self.spec
        tokens = embed_patches(self.weights, pixels, spec.patch_size)
        if spec.form.norm_patches:
            tokens = apply_norm(self.weights, "patch_embed.norm", tokens, spec.form.norm_epsilon)
        positions = self.patch_positions()
        return tokens if positions is None else tokens + positions

    def patch_positions(self) -> Floats | None:
        """Return the positions that are added to patches (1, N, D), None if there are none."""
        if "pos_embed" not in self.weights:
            return None
        return self.weights["pos_embed"][:, self.spec.form.position_tokens :]

    def run_blocks(
        self, tokens: Floats, visible: Indices | None = None, blocks: int | None = None
    ) -> tuple[list[Floats], list[Floats]]:
        """Pass patches (B, V, D), at the places ``visible`` (B, V) or at all, through the first ``blocks`` or all.

        Returns the tokens (B, L, D) behind each block and its attention (B, h, L, L).
        """
        x = self._prepend_prefix(tokens)
        outputs = []
        attention = []
        for index in range(self.spec.depth if blocks is None else blocks):
            x, probabilities = self._run_block(f"blocks.{index}.", x, visible)
            outputs.append(x)
            attention.append(probabilities)
        return outputs, attention

    def apply_last_norm(self, tokens: Floats) -> Floats:
        """Apply the norm behind the last block."""
        return apply_norm(self.weights, "norm", tokens, self.spec.form.norm_epsilon)

    def _prepend_prefix(self, tokens: Floats) -> Floats:
        form = self.spec.form
        prefix = [self.weights[name] for name in ("cls_token", "reg_token") if name in self.weights]
        if prefix:
            first = np.concatenate(prefix, axis=1)
            if "pos_embed" in self.weights and form.prefix_positions:
                first = first + self.weights["pos_embed"][:, : form.position_tokens]
            tokens = np.concatenate([np.repeat(first, len(tokens), axis=0), tokens], axis=1)
        if form.norm_before:
            tokens = apply_norm(self.weights, "norm_pre", tokens, form.norm_epsilon)
        return tokens

    def _run_block(self, name: str, x: Floats, visible: Indices | None) -> tuple[Floats, Floats]:
        weights = self.weights
        form = self.spec.form
        normed = apply_norm(weights, f"{name}norm1", x, form.norm_epsilon)
        q, k, v = (self._split_heads(part) for part in self._project(f"{name}attn.", normed))
        if form.norm_queries:
            q = apply_norm(weights, f"{name}attn.q_norm", q, form.norm_epsilon)
            k = apply_norm(weights, f"{name}attn.k_norm", k, form.norm_epsilon)
        if form.rotary.kind is not None:
            q = self._rotate(q, visible)
            k = self._rotate(k, visible)
        scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
        if self.spec.relative:
            scores = scores + self._find_bias(visible)
        probabilities = compute_softmax(scores)
        mixed = (probabilities @ v).swapaxes(1, 2).reshape(x.shape)
        if form.norm_values:
            mixed = apply_norm(weights, f"{name}attn.norm", mixed, form.norm_epsilon)
        x = x + self._scale_branch(name, 1, apply_linear(weights, f"{name}attn.proj", mixed))
        normed = apply_norm(weights, f"{name}norm2", x, form.norm_epsilon)
        return x + self._scale_branch(name, 2, self._run_mlp(f"{name}mlp.", normed)), probabilities

    def _project(self, name: str, x: Floats) -> list[Floats]:
        """Compute queries, keys and values: (B, L, D) each."""
        weights = self.weights
        if f"{name}q_proj.weight" in weights:
            return [apply_linear(weights, f"{name}{part}_proj", x) for part in "qkv"]
        fused = np.split(apply_linear(weights, f"{name}qkv", x), 3, axis=-1)
        if f"{name}q_bias" in weights:  # keys have none
            fused[0] = fused[0] + weights[f"{name}q_bias"]
            fused[2] = fused[2] + weights[f"{name}v_bias"]
        return fused

    def _split_heads(self, x: Floats) -> Floats:
        return x.reshape(*x.shape[:2], self.spec.heads, -1).swapaxes(1, 2)

    def _rotate(self, heads: Floats, visible: Indices | None) -> Floats:
        """Turn the queries or keys (B, h, L, d) of patches; those before them stay."""
        angles = compute_angles(self.spec.form.rotary, self.spec.grid, heads.shape[-1])
        if visible is not None:
            angles = angles[visible][:, None]
        prefix = self.spec.form.prefix_tokens
        turned = rotate_features(heads[:, :, prefix:], angles, self.spec.form.rotary.halves)
        return np.concatenate([heads[:, :, :prefix], turned], axis=2)

    def _find_bias(self, visible: Indices | None) -> Floats:
        """Return the biases of relative positions: (1 or B, h, L, L)."""
        table = self.weights["rel_pos_bias.relative_position_bias_table"]
        bias: Floats = table[compute_relative_index(self.spec.grid)].transpose(2, 0, 1)[None]
        if visible is None:
            return bias
        places = np.concatenate([np.zeros((len(visible), 1), np.int64), visible + 1], axis=1)
        return bias[0][:, places[:, :, None], places[:, None]].swapaxes(0, 1)

    def _run_mlp(self, name: str, x: Floats) -> Floats:
        form = self.spec.form
        weights = self.weights
        activate = ACTIVATIONS[form.mlp]
        if form.mlp == "swiglu":
            hidden = activate(apply_linear(weights, f"{name}fc1_g", x)) * apply_linear(weights, f"{name}fc1_x", x)
        elif form.mlp == "swiglu_packed":
            gate, values = np.split(apply_linear(weights, f"{name}fc1", x), 2, axis=-1)
            hidden = activate(gate) * values
        else:
            hidden = activate(apply_linear(weights, f"{name}fc1", x))
        if form.norm_mlp:
            hidden = apply_norm(weights, f"{name}norm", hidden, form.norm_epsilon)
        return apply_linear(weights, f"{name}fc2", hidden)

    def _scale_branch(self, name: str, number: int, branch: Floats) -> Floats:
        """Scale a branch of a block by its factor for every feature, which has either of two names."""
        for factor in (f"{name}gamma_{number}", f"{name}ls{number}.gamma"):
            if factor in self.weights:
                return branch * self.weights[factor]
        return branch


def run_plain_block(weights: Weights, name: str, x: Floats, heads: int) -> Floats:
    """Pass (B, L, D) through the block ``name`` of a plain ViT, such as those of a decoder."""
    normed = apply_norm(weights, f"{name}norm1", x, 1e-6)
    fused = apply_linear(weights, f"{name}attn.qkv", normed).reshape(*x.shape[:2], 3, heads, -1)
    q, k, v = fused.transpose(2, 0, 3, 1, 4)
    probabilities = compute_softmax(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]))
    x = x + apply_linear(weights, f"{name}attn.proj", (probabilities @ v).swapaxes(1, 2).reshape(x.shape))
    hidden = ACTIVATIONS["gelu"](apply_linear(weights, f"{name}mlp.fc1", apply_norm(weights, f"{name}norm2", x, 1e-6)))
    return x + apply_linear(weights, f"{name}mlp.fc2", hidden)
