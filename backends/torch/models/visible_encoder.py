"""An encoder of the visible patches alone, as MAE pretrains it.

Every parameter has timm's name. An objective (:mod:`ehm.backends.torch.objectives`) adds what predicts the hidden
patches, and its loss, in a subclass.

Shapes: B images, N patches, V visible ones, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ehm.backends.torch.models.attention import MaskedBlock, class_attention, mean_attention, patch_similarity
from ehm.backends.torch.models.patches import embed_patches, gather_tokens
from ehm.config.encoders import VitSpec, sincos_positions

__all__ = ["VisibleEncoder", "build_blocks", "build_fixed_positions", "create_norm", "initialise_linear_layers"]

create_norm: Any = partial(nn.LayerNorm, eps=1e-6)
"""The norm of ViTs: (width) -> module; torch's own epsilon is 1e-5."""


class VisibleEncoder(nn.Module):
    """A ViT of ``spec`` that encodes visible patches; a subclass adds what predicts the others."""

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbed(spec.image_size, spec.patch_size, 3, spec.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.pos_embed = build_fixed_positions(spec, spec.width)
        self.blocks = build_blocks(spec, spec.width, spec.depth, spec.heads)
        self.norm = create_norm(spec.width)

    def init_weights(self) -> None:
        """Set the patch embedding and the class token as MAE's published code does."""
        # as the matrix of a linear layer, whose fan-in is that of a whole patch
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.spec.width, -1))
        nn.init.normal_(self.cls_token, std=0.02)

    @property
    def stack(self) -> nn.ModuleList:
        """The blocks of the encoder."""
        return self.blocks

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of the names in each layer of a ViT; other parameters lie above the encoder."""
        patterns: dict[str, Any] = VisionTransformer.group_matcher(cast(Any, self), coarse)
        return patterns

    def embed(self, images: Tensor) -> Tensor:
        """Embed normalised (B, 3, H, W) as patch tokens with their positions (B, N, D)."""
        return embed_patches(images, self.patch_embed.proj, self.spec.patch_size) + self.pos_embed[:, 1:]

    def compute_similarity(self, tokens: Tensor, blocks: int) -> Tensor:
        """Symmetrised mean attention of the first ``blocks`` blocks over all patches: (B, N, D) -> (B, N, N)."""
        return patch_similarity(mean_attention(self.blocks, self._with_class_token(tokens), blocks))

    def compute_features(self, tokens: Tensor, blocks: int) -> Tensor:
        """Tokens behind the first ``blocks`` blocks over all patches: (B, N, D) -> (B, N, D)."""
        tokens = self._with_class_token(tokens)
        for block in self.blocks[:blocks]:
            tokens = block(tokens)
        return tokens[:, 1:]

    def compute_saliency(self, tokens: Tensor) -> Tensor:
        """Compute the class token's attention to all patches in the last block: (B, N, D) -> (B, N)."""
        return class_attention(self.blocks, self._with_class_token(tokens))

    def encode(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Encode the patches at indices ``visible``: (B, N, D), (B, V) -> (B, 1 + V, D).

        There may be several masks of an image, one after the other: (k * B, V) -> (k * B, 1 + V, D).
        """
        tokens = self._with_class_token(gather_tokens(tokens, visible))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        # the class token has a position of its own, which is zero until it is fine-tuned
        first = (self.cls_token + self.pos_embed[:, :1]).to(tokens.dtype)
        return torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], dim=1)


def build_blocks(spec: VitSpec, width: int, depth: int, heads: int) -> nn.ModuleList:
    """Return ``depth`` blocks, ``width`` wide, with the ratio of hidden features of ``spec``."""
    return nn.ModuleList(
        MaskedBlock(width, heads, spec.mlp_ratio, qkv_bias=True, norm_layer=create_norm) for _ in range(depth)
    )


def build_fixed_positions(spec: VitSpec, width: int) -> nn.Parameter:
    """Return sine-cosine positions of the class token and the patches, which are not trained: (1, 1 + N, width)."""
    return nn.Parameter(torch.from_numpy(sincos_positions(width, spec.grid)), requires_grad=False)


def initialise_linear_layers(model: nn.Module) -> None:
    """Set all linear layers of ``model`` as MAE's published code does: Xavier's uniform weights and no bias."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
