"""An encoder of the visible patches under a light decoder: what MAE and feature prediction share.

Decoder names are those of MAE's published checkpoints. An objective adds the last layer, which predicts from the
decoder's tokens, and its loss in a subclass.

Shapes: B images, N patches, V visible ones, K wanted ones, P tokens before the patches, D width, W width of the
decoder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.blocks import Block, Dense, LayerNorm, run_blocks
from ehm.backends.mindspore.models.patches import gather_tokens
from ehm.backends.mindspore.models.vit_parts import VitParts
from ehm.config.encoders import VitSpec, compute_sincos_positions

__all__ = ["VisibleDecoder", "VisibleEncoder"]


class VisibleEncoder(VitParts):
    """A ViT of ``spec`` that encodes visible patches.

    The positions of a plain ViT are MAE's fixed ones, or those of the weights that it begins with.
    """

    def __init__(self, spec: VitSpec, dtype: Any) -> None:
        super().__init__(spec, dtype)
        if spec.is_plain:
            self.pos_embed = build_fixed_positions(spec, spec.width)

    def encode(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Encode the patches at indices ``visible``: (B, N, D), (k * B, V) -> (k * B, P + V, D)."""
        return self.norm(self.run_stack(gather_tokens(tokens, visible), visible))


class VisibleDecoder(VisibleEncoder):
    """A ViT of ``spec`` that encodes visible patches, and a narrow transformer over these and mask tokens."""

    def __init__(self, spec: VitSpec, decoder_width: int, decoder_depth: int, decoder_heads: int, dtype: Any) -> None:
        super().__init__(spec, dtype)
        self.class_tokens = 1 if spec.has_class_token else 0
        self.decoder_embed = Dense(spec.width, decoder_width, dtype)
        self.mask_token = Parameter(Tensor(np.zeros((1, 1, decoder_width), np.float32)))
        self.decoder_pos_embed = build_fixed_positions(spec, decoder_width)
        self.decoder_blocks = nn.CellList(
            [Block(decoder_width, decoder_heads, spec.mlp_ratio, dtype) for _ in range(decoder_depth)]
        )
        self.decoder_norm = LayerNorm(decoder_width)

    def decode(self, encoded: Tensor, restore: Tensor, wanted: Tensor) -> Tensor:
        """Decode the patches at indices ``wanted``: (B, P + V, D) and (B, K) -> (B, K, W).

        ``restore`` (B, N) is each patch's place among the visible, then the masked ones. Of the P tokens before the
        patches, the decoder sees the class token only.
        """
        tokens = self.decoder_embed(encoded)
        visible_patches = tokens[:, self.prefix :]
        batch, visible_count, width = visible_patches.shape
        masked_count = restore.shape[1] - visible_count
        mask_tokens = ops.broadcast_to(self.mask_token.astype(tokens.dtype), (batch, masked_count, width))
        patches = gather_tokens(ops.cat((visible_patches, mask_tokens), 1), restore)
        if self.class_tokens:
            patches = ops.cat((tokens[:, :1], patches), 1)
        decoded = patches + self.decoder_pos_embed[:, 1 - self.class_tokens :]
        decoded = run_blocks(self.decoder_blocks, decoded)
        # the norm of visible patches would be thrown away
        return self.decoder_norm(gather_tokens(decoded[:, self.class_tokens :], wanted))


def build_fixed_positions(spec: VitSpec, width: int) -> Parameter:
    """Return sine-cosine positions of the class token and the patches, which are not trained: (1, 1 + N, width)."""
    return Parameter(Tensor(compute_sincos_positions(width, spec.grid)), requires_grad=False)
