"""A light decoder over an encoder of the visible patches: what MAE and feature prediction share.

Decoder names are those of MAE's published checkpoints. An objective adds the last layer, which predicts from the
decoder's tokens, and its loss in a subclass.

Shapes: B images, N patches, V visible ones, K wanted ones, D width, W width of the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ehm.backends.torch.models.patches import gather_tokens
from ehm.backends.torch.models.visible_encoder import (
    VisibleEncoder,
    build_blocks,
    build_fixed_positions,
    create_norm,
    initialise_linear_layers,
)
from ehm.config.encoders import VitSpec

__all__ = ["VisibleDecoder"]


class VisibleDecoder(VisibleEncoder):
    """A ViT of ``spec`` that encodes visible patches, and a narrow transformer over these and mask tokens."""

    def __init__(self, spec: VitSpec, decoder_width: int, decoder_depth: int, decoder_heads: int) -> None:
        super().__init__(spec)
        self.decoder_embed = nn.Linear(spec.width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = build_fixed_positions(spec, decoder_width)
        self.decoder_blocks = build_blocks(spec, decoder_width, decoder_depth, decoder_heads)
        self.decoder_norm = create_norm(decoder_width)

    def init_weights(self) -> None:
        """Set all weights, those of a subclass too, as MAE's published code does."""
        super().init_weights()
        nn.init.normal_(self.mask_token, std=0.02)
        initialise_linear_layers(self)

    def decode(self, encoded: Tensor, restore: Tensor, wanted: Tensor) -> Tensor:
        """Decode the patches at indices ``wanted``: (B, P + V, D) and (B, K) -> (B, K, W).

        ``restore`` (B, N) is each patch's place among the visible, then the masked ones. Of the P tokens before the
        patches, the decoder sees the class token only.
        """
        tokens = self.decoder_embed(encoded)
        class_tokens = 1 if self.spec.has_class_token else 0
        class_token = tokens[:, :class_tokens]
        visible_patches = tokens[:, self.spec.form.prefix_tokens :]
        masked_count = restore.shape[1] - visible_patches.shape[1]
        mask_tokens = self.mask_token.to(tokens.dtype).expand(tokens.shape[0], masked_count, -1)
        patches = gather_tokens(torch.cat([visible_patches, mask_tokens], dim=1), restore)
        tokens = torch.cat([class_token, patches], dim=1) + self.decoder_pos_embed[:, 1 - class_tokens :]
        for block in self.decoder_blocks:
            tokens = block(tokens)
        # the norm of visible patches would be thrown away
        decoded: Tensor = self.decoder_norm(gather_tokens(tokens[:, class_tokens:], wanted))
        return decoded
