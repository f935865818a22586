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
from ehm.backends.torch.models.patches import embed_patches, gather_tokens, patchify
from ehm.backends.torch.objectives.base import TorchObjective
from ehm.config.encoders import VitSpec, sincos_positions

__all__ = ["MaskedAutoencoder", "TorchMae"]


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
        self.spec = spec
        self.norm_pix_loss = norm_pix_loss
        values_per_patch = spec.patch_size**2 * 3
        norm: Any = partial(nn.LayerNorm, eps=1e-6)

        def build_blocks(width: int, depth: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(
                MaskedBlock(width, heads, spec.mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)
            )

        def build_positions(width: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(1, spec.patches + 1, width), requires_grad=False)

        self.patch_embed = PatchEmbed(spec.image_size, spec.patch_size, 3, spec.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.pos_embed = build_positions(spec.width)
        self.blocks = build_blocks(spec.width, spec.depth, spec.heads)
        self.norm = norm(spec.width)

        self.decoder_embed = nn.Linear(spec.width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = build_positions(decoder_width)
        self.decoder_blocks = build_blocks(decoder_width, decoder_depth, decoder_heads)
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, values_per_patch)
        self._init_weights()

    def _init_weights(self) -> None:
        """Set fixed sine-cosine positions, Xavier for projections and 0.02 for tokens, as the published code does."""
        for positions in (self.pos_embed, self.decoder_pos_embed):
            positions.data.copy_(torch.from_numpy(sincos_positions(positions.shape[-1], self.spec.grid)))
        # as the matrix of a linear layer, whose fan-in is that of a whole patch
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.spec.width, -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def stack(self) -> nn.ModuleList:
        """The blocks of the encoder."""
        return self.blocks

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

    def decode(self, encoded: Tensor, restore: Tensor, wanted: Tensor) -> Tensor:
        """Predict the patches at indices ``wanted``: (B, 1 + V, D) and (B, K) -> (B, K, P).

        ``restore`` (B, N) is each patch's place among the visible, then the masked ones.
        """
        tokens = self.decoder_embed(encoded)
        class_token = tokens[:, :1]
        visible_patches = tokens[:, 1:]
        masked_count = restore.shape[1] - visible_patches.shape[1]
        mask_tokens = self.mask_token.to(tokens.dtype).expand(tokens.shape[0], masked_count, -1)
        patches = gather_tokens(torch.cat([visible_patches, mask_tokens], dim=1), restore)
        tokens = torch.cat([class_token, patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        # the norm and the prediction of visible patches would be thrown away
        return self.decoder_pred(self.decoder_norm(gather_tokens(tokens[:, 1:], wanted)))

    def target(self, images: Tensor, masked: Tensor) -> Tensor:
        """Return the pixels of the patches at indices ``masked`` (B, K): (B, K, P), normalised by patch if asked."""
        target = gather_tokens(patchify(images, self.spec.patch_size), masked)
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
        if tokens is None:
            tokens = self.embed(images)
        predicted = self.decode(self.encode(tokens, visible), restore, masked)
        # float32 from here on, because bfloat16 would round the small differences
        return (predicted.float() - self.target(images, masked)).square().mean()

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        # the class token has a position of its own, which is zero until it is fine-tuned
        first = (self.cls_token + self.pos_embed[:, :1]).to(tokens.dtype)
        return torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], dim=1)


class TorchMae(TorchObjective):
    """MAE on a torch device."""

    def build_model(self) -> Any:
        """See :meth:`TorchObjective.build_model`."""
        spec = self.config.spec
        model = self.config.model
        assert isinstance(spec, VitSpec)  # the objective refuses other encoders when a configuration is read
        return MaskedAutoencoder(
            spec, model.decoder_width, model.decoder_depth, model.decoder_heads, model.norm_pix_loss
        )
