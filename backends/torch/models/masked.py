"""Encoders that see a mask token in place of what is hidden, as SimMIM and BEiT pretrain.

They are timm's classes with a ``mask_token`` more, so that every parameter has timm's name; a method (``simmim.py``,
``beit.py``) adds its head and its loss.

Shapes: B images, N output tokens of D features, k masks an image.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from ehm.backends.torch.engine.hierarchy import spread_mask
from ehm.backends.torch.models.attention import class_attention, mean_attention, patch_similarity
from ehm.backends.torch.models.patches import embed
from ehm.backends.torch.models.swin import first_blocks, mean_cells, stage_similarity, swin_sizes
from ehm.backends.torch.models.vit import vit_sizes
from ehm.config.encoders import SwinSpec, VitSpec

__all__ = ["MaskedEncoder", "MaskedSwin", "MaskedVit"]


class MaskedEncoder(Protocol):
    """What the heads need of an encoder."""

    spec: Any

    def embed(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> tokens of the first block."""
        ...

    def encode(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Tokens of :meth:`embed` and what of the output grid is hidden, (k * B, N) bool -> (k * B, N, D)."""
        ...


class MaskedVit(Beit):
    """A ViT in the relative form with one table of biases for all blocks, as BEiT and SimMIM pretrain it."""

    def __init__(self, spec: VitSpec, drop_path: float = 0.0) -> None:
        sizes = vit_sizes(spec, drop_path)
        super().__init__(**sizes, num_classes=0, use_shared_rel_pos_bias=True, use_fc_norm=False)
        self.spec = spec
        self.mask_token = _mask_token(spec.width)

    @property
    def stack(self) -> nn.ModuleList:
        """What the encoder is made of."""
        return self.blocks

    def embed(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> patch tokens (B, N, D)."""
        return embed(images, self.patch_embed.proj, self.spec.patch_size)

    def encode(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """See :meth:`MaskedEncoder.encode`."""
        tokens, share = self._with_class_token(_covered(tokens, self.mask_token, hidden)), self.rel_pos_bias()
        for block in self.blocks:
            tokens = block(tokens, shared_rel_pos_bias=share)
        encoded: Tensor = self.norm(tokens)[:, 1:]
        return encoded

    def similarity(self, tokens: Tensor, blocks: int) -> Tensor:
        """Symmetrised mean attention of the first ``blocks`` blocks over all patches: (B, N, D) -> (B, N, N)."""
        share = self.rel_pos_bias()
        return patch_similarity(mean_attention(self.blocks, self._with_class_token(tokens), blocks, share))

    def features(self, tokens: Tensor, blocks: int) -> Tensor:
        """Tokens behind the first ``blocks`` blocks over all patches: (B, N, D) -> (B, N, D)."""
        tokens, share = self._with_class_token(tokens), self.rel_pos_bias()
        for block in self.blocks[:blocks]:
            tokens = block(tokens, shared_rel_pos_bias=share)
        return tokens[:, 1:]

    def saliency(self, tokens: Tensor) -> Tensor:
        """The class token's attention to the patches in the last block, all of them visible: (B, N, D) -> (B, N)."""
        return class_attention(self.blocks, self._with_class_token(tokens), self.rel_pos_bias())

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        first = self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return torch.cat([first, tokens], dim=1)


class MaskedSwin(SwinTransformer):
    """A Swin as SimMIM pretrains it; N are the tokens of its last stage, and tokens of its first are (B, h, w, D)."""

    def __init__(self, spec: SwinSpec, drop_path: float = 0.0) -> None:
        super().__init__(**swin_sizes(spec, drop_path), num_classes=0)
        self.spec = spec
        self.mask_token = _mask_token(spec.width)

    @property
    def stack(self) -> nn.Sequential:
        """What the encoder is made of: its stages, the first k of which hold the first k blocks."""
        return self.layers

    def embed(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> patch tokens (B, h, w, D of the first stage)."""
        tokens = embed(images, self.patch_embed.proj, self.spec.patch_size)
        norm: Any = self.patch_embed.norm
        normed: Tensor = norm(tokens)
        return normed.unflatten(1, (images.shape[2] // self.spec.patch_size, -1))

    def encode(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """See :meth:`MaskedEncoder.encode`."""
        spread = spread_mask(hidden, self.spec.grid, self.spec.stride // self.spec.patch_size)
        covered = _covered(tokens.flatten(1, 2), self.mask_token, spread).unflatten(1, tokens.shape[1:3])
        encoded: Tensor = self.norm(self.layers(covered)).flatten(1, 2)
        return encoded

    def similarity(self, tokens: Tensor, blocks: int) -> Tensor:
        """Symmetrised mean of what the first ``blocks`` blocks attend to, between output cells: -> (B, N, N).

        See :func:`ehm.backends.torch.models.swin.cell_attention`.
        """
        return stage_similarity(self.layers, tokens, blocks, self.spec.grid)

    def features(self, tokens: Tensor, blocks: int) -> Tensor:
        """Tokens behind the first ``blocks`` blocks, mean over each output cell: -> (B, N, D of their stage)."""
        _, behind = first_blocks(self.layers, tokens, blocks)
        return mean_cells(behind, self.spec.grid)


def _mask_token(width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))


def _covered(tokens: Tensor, mask_token: Tensor, hidden: Tensor) -> Tensor:
    """The mask token where ``hidden`` (k * B, N) says so, the patch's own elsewhere: (B, N, D) -> (k * B, N, D)."""
    views = len(hidden) // len(tokens)
    if views > 1:
        tokens = tokens.unsqueeze(1).expand(-1, views, -1, -1).flatten(0, 1)
    return torch.where(hidden.unsqueeze(-1), mask_token.to(tokens.dtype), tokens)
