"""Masked autoencoder (He et al., 2022): an encoder of the visible patches, a light decoder of all of them.

Encoder names are timm's, decoder names those of the published checkpoints, so that both load without renaming.
Shapes: B images, N patches, V visible ones, D width, P = patch_size**2 * 3 values of a patch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from ehm.backends.torch.models.attention import MaskedBlock, class_attention, mean_attention, patch_similarity
from ehm.backends.torch.models.patches import embed, patchify, take
from ehm.config.encoders import VitSpec, sincos_positions

__all__ = ["MaskedAutoencoder"]


class MaskedAutoencoder(nn.Module):
    """MAE on a ViT of ``spec``; ``forward`` gives the reconstruction loss of the masked patches."""

    def __init__(
        self,
        spec: VitSpec,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix_loss: bool = True,
    ) -> None:
        super().__init__()
        self.spec, self.norm_pix_loss = spec, norm_pix_loss
        tokens, values = spec.patches + 1, spec.patch_size**2 * 3
        norm: Any = partial(nn.LayerNorm, eps=1e-6)

        def stack(width: int, depth: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(
                MaskedBlock(width, heads, spec.mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)
            )

        self.patch_embed = PatchEmbed(spec.image_size, spec.patch_size, 3, spec.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, spec.width), requires_grad=False)
        self.blocks = stack(spec.width, spec.depth, spec.heads)
        self.norm = norm(spec.width)

        self.decoder_embed = nn.Linear(spec.width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, decoder_width), requires_grad=False)
        self.decoder_blocks = stack(decoder_width, decoder_depth, decoder_heads)
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, values)
        self._initialise()

    def _initialise(self) -> None:
        """Fixed sine-cosine positions, Xavier for projections, 0.02 for tokens: as the published code does."""
        for positions in (self.pos_embed, self.decoder_pos_embed):
            positions.data.copy_(torch.from_numpy(sincos_positions(positions.shape[-1], self.spec.grid)))
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.spec.width, -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def stack(self) -> nn.ModuleList:
        """What the encoder is made of."""
        return self.blocks

    def embed(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> patch tokens with their positions (B, N, D)."""
        return embed(images, self.patch_embed.proj, self.spec.patch_size) + self.pos_embed[:, 1:]

    def similarity(self, tokens: Tensor, blocks: int) -> Tensor:
        """Symmetrised mean attention of the first ``blocks`` blocks over all patches: (B, N, D) -> (B, N, N)."""
        return patch_similarity(mean_attention(self.blocks, self._with_class_token(tokens), blocks))

    def features(self, tokens: Tensor, blocks: int) -> Tensor:
        """Tokens behind the first ``blocks`` blocks over all patches: (B, N, D) -> (B, N, D)."""
        tokens = self._with_class_token(tokens)
        for block in self.blocks[:blocks]:
            tokens = block(tokens)
        return tokens[:, 1:]

    def saliency(self, tokens: Tensor) -> Tensor:
        """The class token's attention to the patches in the last block, all of them visible: (B, N, D) -> (B, N)."""
        return class_attention(self.blocks, self._with_class_token(tokens))

    def encode(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Encode the patches at indices ``visible``: (B, N, D), (B, V) -> (B, 1 + V, D).

        There may be several masks of an image, one after the other: (k * B, V) -> (k * B, 1 + V, D).
        """
        tokens = self._with_class_token(take(tokens, visible))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def decode(self, encoded: Tensor, restore: Tensor, wanted: Tensor) -> Tensor:
        """Predict the patches at indices ``wanted``: (B, 1 + V, D) and (B, K) -> (B, K, P).

        ``restore`` (B, N) is each patch's place among the visible, then the masked ones.
        """
        tokens = self.decoder_embed(encoded)
        masked = restore.shape[1] + 1 - tokens.shape[1]
        fill = self.mask_token.to(tokens.dtype).expand(tokens.shape[0], masked, -1)
        patches = take(torch.cat([tokens[:, 1:], fill], dim=1), restore)
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(take(tokens[:, 1:], wanted)))

    def target(self, images: Tensor, masked: Tensor) -> Tensor:
        """What the patches at indices ``masked`` (B, K) are, normalised patch by patch if asked: (B, K, P)."""
        target = take(patchify(images, self.spec.patch_size), masked)
        if not self.norm_pix_loss:
            return target
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        return (target - mean) / (variance + 1e-6) ** 0.5

    def forward(
        self, images: Tensor, visible: Tensor, masked: Tensor, restore: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the masked patches of normalised (B, 3, H, W), from their indices (k * B, ...).

        ``tokens`` (B, N, D) spares the patch embedding if it has been computed. The k masks of an image lie one after
        the other.
        """
        tokens = self.embed(images) if tokens is None else tokens
        predicted = self.decode(self.encode(tokens, visible), restore, masked)
        return (predicted.float() - self.target(images, masked)).square().mean()

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        first = (self.cls_token + self.pos_embed[:, :1]).to(tokens.dtype)
        return torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], dim=1)
