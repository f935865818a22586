"""The parts of a ViT under timm's names, and the way of tokens through them: whole images, or some of their patches.

Shapes: B images, N patches, V visible ones, P tokens before them (class token, registers), L = P + V, D width, h heads
of d features.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.blocks import (
    Block,
    average_attention,
    compute_class_attention,
    compute_patch_similarity,
    run_blocks,
)
from ehm.backends.mindspore.models.form_blocks import FormBlock, build_norm
from ehm.backends.mindspore.models.patches import PatchEmbed
from ehm.backends.mindspore.models.relative import RelativeBias, RelativeBlock
from ehm.backends.mindspore.models.rotary import compute_rotations
from ehm.config.encoders import VitSpec

__all__ = ["VitParts"]


class VitParts(nn.Cell):
    """The parts of a ViT of ``spec``.

    In the relative form all blocks share one table of biases, as in pretraining, unless they have ``own_tables``, as in
    fine-tuning. Without ``last_norm`` there is no norm behind the blocks.
    """

    cls_token: Any
    reg_token: Any
    pos_embed: Any
    norm_pre: Any
    norm: Any

    def __init__(self, spec: VitSpec, dtype: Any, own_tables: bool = False, last_norm: bool = True) -> None:
        super().__init__()
        form = spec.form
        width = spec.width
        self.prefix = form.prefix_tokens
        self.position_tokens = form.position_tokens
        self.patch_embed = PatchEmbed(
            spec.patch_size,
            width,
            dtype,
            bias=not form.norm_before,
            norm=build_norm(form, width) if form.norm_patches else None,
            channels=spec.channels,
        )
        self.cls_token = _create_zeros(1, width) if form.class_token else None
        self.reg_token = _create_zeros(form.registers, width) if form.registers else None
        self.pos_embed = None
        if form.added_positions and not spec.relative:
            self.pos_embed = _create_zeros(form.position_tokens + spec.patches, width)
        self.rel_pos_bias = RelativeBias(spec.grid, spec.heads) if spec.relative and not own_tables else None
        self.rotations = None
        if form.rotary.kind is not None:
            self.rotations = Tensor(compute_rotations(form.rotary, spec.grid, width // spec.heads))
        self.norm_pre = build_norm(form, width) if form.norm_before else None
        self.blocks = nn.CellList([_build_block(spec, dtype, own_tables) for _ in range(spec.depth)])
        self.norm = build_norm(form, width) if last_norm else None

    def embed(self, images: Tensor) -> Tensor:
        """Embed normalised (B, 3, H, W) as patch tokens with their added positions, if there are any: (B, N, D)."""
        tokens = self.patch_embed(images).astype(ms.float32)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed[:, self.position_tokens :]
        return tokens

    def embed_patches(self, patches: Tensor, resampling: Tensor | None) -> Tensor:
        """Embed patches of images of another size, whose positions ``resampling`` (M, N) gives: -> (B, M, D)."""
        tokens = self.patch_embed.embed_patches(patches).astype(ms.float32)
        if self.pos_embed is not None:
            tokens = tokens + resampling @ self.pos_embed[0, self.position_tokens :]
        return tokens

    def locate(self, visible: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return the biases and the rotations of all patches, or of those at indices ``visible`` (B, V)."""
        bias = None
        if self.rel_pos_bias is not None:
            bias = self.rel_pos_bias()
            if visible is not None:
                bias = _select_pairs(bias, visible, self.prefix)
        rotations = self.rotations
        if rotations is not None and visible is not None:
            rows = ops.gather(rotations, visible.reshape((-1,)), 0)
            # one axis for the heads, which share the angles
            rotations = rows.reshape((visible.shape[0], 1, visible.shape[1], -1))
        return bias, rotations

    def prepend_prefix(self, tokens: Tensor) -> Tensor:
        """Put the class token and registers before patches: (B, V, D) -> (B, L, D), as the first block takes them."""
        if self.prefix > 0:
            if self.reg_token is None:
                first = self.cls_token
            elif self.cls_token is None:
                first = self.reg_token
            else:
                first = ops.cat((self.cls_token, self.reg_token), 1)
            if self.pos_embed is not None and self.position_tokens > 0:
                first = first + self.pos_embed[:, : self.position_tokens]
            shape = (tokens.shape[0], self.prefix, tokens.shape[2])
            tokens = ops.cat((ops.broadcast_to(first.astype(tokens.dtype), shape), tokens), 1)
        if self.norm_pre is not None:
            tokens = self.norm_pre(tokens)
        return tokens

    def run_stack(
        self, tokens: Tensor, visible: Tensor | None = None, count: int | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Pass patch tokens through the first ``count`` blocks, or all: (B, V, D) -> (B, L, D).

        They are all patches, or those at indices ``visible``. ``keep`` (2 * depth, B, 1, 1) are drop path's factors.
        """
        bias, rotations = self.locate(visible)
        return run_blocks(self.blocks[:count], self.prepend_prefix(tokens), bias, rotations, keep)

    def compute_similarity(self, tokens: Tensor, blocks: int) -> Tensor:
        """Compute the symmetrised mean attention of the first ``blocks`` blocks (Eq. 6): (B, N, D) -> (B, N, N)."""
        bias, rotations = self.locate()
        attention = average_attention(self.blocks, self.prepend_prefix(tokens), blocks, bias, rotations)
        return compute_patch_similarity(attention, self.prefix)

    def compute_features(self, tokens: Tensor, blocks: int) -> Tensor:
        """Compute the tokens behind the first ``blocks`` blocks over all patches: (B, N, D) -> (B, N, D)."""
        return self.run_stack(tokens, None, blocks)[:, self.prefix :]

    def pool_features(self, tokens: Tensor) -> Tensor:
        """Average over all patches what the last norm gives: (B, N, D) -> (B, D), float32."""
        return self.norm(self.run_stack(tokens))[:, self.prefix :].mean(axis=1)

    def compute_saliency(self, tokens: Tensor) -> Tensor:
        """Compute the class token's attention to all patches in the last block: (B, N, D) -> (B, N)."""
        bias, rotations = self.locate()
        return compute_class_attention(self.blocks, self.prepend_prefix(tokens), bias, rotations, self.prefix)


def _create_zeros(tokens: int, width: int) -> Parameter:
    return Parameter(Tensor(np.zeros((1, tokens, width), np.float32)))


def _build_block(spec: VitSpec, dtype: Any, own_tables: bool) -> Block:
    """Return a block of ``spec``, with a table of its own in the relative form if it has ``own_tables``."""
    epsilon = spec.form.norm_epsilon
    if spec.relative:
        grid = spec.grid if own_tables else None
        return RelativeBlock(spec.width, spec.heads, spec.mlp_ratio, dtype, grid, epsilon)
    if spec.is_plain:
        return Block(spec.width, spec.heads, spec.mlp_ratio, dtype)
    return FormBlock(spec, dtype)


def _select_pairs(bias: Tensor, visible: Tensor, prefix: int) -> Tensor:
    """Select the biases between visible tokens: (h, P + N, P + N), (B, V) -> (B, h, L, L)."""
    heads, tokens, _ = bias.shape
    batch, count = visible.shape
    patches = visible.astype(ms.int32) + prefix
    first = ops.broadcast_to(ops.arange(prefix).astype(ms.int32), (batch, prefix))
    indices = ops.cat((first, patches), 1)
    length = prefix + count
    pairs = indices.reshape((batch, length, 1)) * tokens + indices.reshape((batch, 1, length))
    table = bias.reshape((heads, tokens * tokens)).swapaxes(0, 1)
    taken = ops.gather(table, pairs.reshape((-1,)), 0)
    return taken.reshape((batch, length, length, heads)).transpose((0, 3, 1, 2))
