"""Encoders that see a mask token in place of what is hidden, as SimMIM and BEiT pretrain.

They are timm's networks with a ``mask_token`` more, so that every parameter has timm's name. An objective
(:mod:`ehm.backends.torch.objectives`) adds its head and its loss in a subclass.

Shapes: B images, N output tokens of D features, k masks an image.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from ehm.backends.torch.engine.masks import spread_mask
from ehm.backends.torch.models.patches import embed_patches
from ehm.backends.torch.models.swin import (
    average_cells,
    compute_stage_similarity,
    list_swin_arguments,
    run_first_blocks,
)
from ehm.backends.torch.models.vit_parts import VitParts, build_parts
from ehm.config.encoders import SwinSpec, VitSpec

__all__ = ["MaskedEncoder", "MaskedSwin", "MaskedVit", "encode_masked_images"]


class MaskedEncoder(Protocol):
    """An encoder as the heads of objectives use it."""

    spec: Any

    def embed(self, images: Tensor) -> Tensor:
        """Embed normalised (B, 3, H, W) as tokens of the first block."""
        ...

    def encode(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Encode tokens of :meth:`embed`, with those hidden (k * B, N) bool of the output grid: (k * B, N, D)."""
        ...


def encode_masked_images(
    encoder: MaskedEncoder, images: Tensor, visible: Tensor, restore: Tensor, tokens: Tensor | None = None
) -> Tensor:
    """Encode normalised (B, 3, H, W) with their hidden cells covered: (k * B, N, D), with k masks an image.

    ``visible`` (k * B, V) and ``restore`` (k * B, N) are indices of cells; ``tokens`` are those that
    :meth:`MaskedEncoder.embed` made of the images, if that was done already.
    """
    if tokens is None:
        tokens = encoder.embed(images)
    # the places of hidden cells come behind those of the visible ones
    return encoder.encode(tokens, restore >= visible.shape[1])


class MaskedVit(VitParts):
    """A ViT that sees mask tokens; one with relative positions has one table of them for all blocks, as BEiT's."""

    def __init__(self, spec: VitSpec, drop_path: float = 0.0) -> None:
        super().__init__(spec, build_parts(spec, drop_path))
        self.mask_token = _create_mask_token(spec.width)

    def encode(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """See :meth:`MaskedEncoder.encode`."""
        mask_token: Tensor = self.mask_token
        positions = self.get_patch_positions()
        if positions is not None:
            # as if it had been put in the place of the patch before positions were added
            mask_token = mask_token + positions
        places = self.locate()
        encoded: Tensor = self.norm(self.run_stack(_cover(tokens, mask_token, hidden), places))
        return encoded[:, places.prefix :]


class MaskedSwin(SwinTransformer):
    """A Swin as SimMIM pretrains it; N are the tokens of its last stage, and tokens of its first are (B, h, w, D)."""

    def __init__(self, spec: SwinSpec, drop_path: float = 0.0) -> None:
        super().__init__(**list_swin_arguments(spec, drop_path), num_classes=0)
        self.spec = spec
        self.mask_token = _create_mask_token(spec.width)

    @property
    def stack(self) -> nn.Sequential:
        """The stages of the encoder, the first k of which hold the first k blocks."""
        return self.layers

    def embed(self, images: Tensor) -> Tensor:
        """Embed normalised (B, 3, H, W) as patch tokens (B, h, w, D of the first stage)."""
        tokens = embed_patches(images, self.patch_embed.proj, self.spec.patch_size)
        # timm's own patch embedding, with a matrix product instead of the convolution
        norm: Any = self.patch_embed.norm
        normed: Tensor = norm(tokens)
        return normed.unflatten(1, (images.shape[2] // self.spec.patch_size, -1))

    def encode(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """See :meth:`MaskedEncoder.encode`."""
        patches_per_cell = self.spec.stride // self.spec.patch_size
        hidden_patches = spread_mask(hidden, self.spec.grid, patches_per_cell)
        covered = _cover(tokens.flatten(1, 2), self.mask_token, hidden_patches).unflatten(1, tokens.shape[1:3])
        encoded: Tensor = self.norm(self.layers(covered)).flatten(1, 2)
        return encoded

    def compute_similarity(self, tokens: Tensor, blocks: int) -> Tensor:
        """Compute the symmetrised mean attention between cells in the first ``blocks`` blocks: -> (B, N, N).

        See :func:`ehm.backends.torch.models.swin.compute_cell_attention`.
        """
        return compute_stage_similarity(self.layers, tokens, blocks, self.spec.grid)

    def compute_features(self, tokens: Tensor, blocks: int) -> Tensor:
        """Compute the tokens behind the first ``blocks`` blocks, mean over each cell: -> (B, N, D of their stage)."""
        _, behind = run_first_blocks(self.layers, tokens, blocks)
        return average_cells(behind, self.spec.grid)

    def pool_features(self, tokens: Tensor) -> Tensor:
        """Average over all output cells what the last norm gives: (B, h, w, D) -> (B, D of the last stage), float32."""
        encoded: Tensor = self.norm(self.layers(tokens))
        return encoded.mean(dim=(1, 2), dtype=torch.float32)


def _create_mask_token(width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))


def _cover(tokens: Tensor, mask_token: Tensor, hidden: Tensor) -> Tensor:
    """Put the mask token in place of ``hidden`` patches (k * B, N): (B, N, D) -> (k * B, N, D).

    ``mask_token`` is one for all places (1, 1, D), or one for each (1, N, D).
    """
    views = len(hidden) // len(tokens)
    if views > 1:
        # the k masks of an image lie one after the other
        tokens = tokens.unsqueeze(1).expand(-1, views, -1, -1).flatten(0, 1)
    return torch.where(hidden.unsqueeze(-1), mask_token.to(tokens.dtype), tokens)
