"""The learned query that pools the tokens of SigLIP's ViTs, with the names of timm's ``AttentionPoolLatent``.

Shapes: B images, L tokens of D features, h heads of d features.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.blocks import Dense
from ehm.backends.mindspore.models.form_blocks import FormMlp, build_norm
from ehm.config.encoders import VitSpec

__all__ = ["AttentionPool"]


class AttentionPool(nn.Cell):
    """Attention of one learned query to all tokens, under an MLP: (B, L, D) -> (B, D)."""

    def __init__(self, spec: VitSpec, dtype: Any) -> None:
        super().__init__()
        width = spec.width
        self.heads = spec.heads
        self.scale = (width // spec.heads) ** -0.5
        self.latent = Parameter(Tensor(np.zeros((1, 1, width), np.float32)))
        self.q = Dense(width, width, dtype)
        self.kv = Dense(width, 2 * width, dtype)
        self.proj = Dense(width, width, dtype)
        self.norm = build_norm(spec.form, width)
        self.mlp = FormMlp(spec.form, width, int(width * spec.mlp_ratio), dtype)
        self.unstack = ops.Unstack(axis=0, num=2)

    def construct(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, D); ``bias`` (1, 1, 1, L) is added to the scores."""
        batch, length, width = tokens.shape
        head_width = width // self.heads
        query = self.q(self.latent).reshape((1, 1, self.heads, head_width)).transpose((0, 2, 1, 3))
        query = ops.broadcast_to(query * self.scale, (batch, self.heads, 1, head_width))
        split = self.kv(tokens).reshape((batch, length, 2, self.heads, head_width)).transpose((2, 0, 3, 1, 4))
        keys, values = self.unstack(split)
        scores = ops.BatchMatMul(transpose_b=True)(query, keys).astype(ms.float32)
        if bias is not None:
            scores = scores + bias
        mixed = ops.BatchMatMul()(ops.softmax(scores, axis=-1).astype(values.dtype), values)
        pooled = self.proj(mixed.transpose((0, 2, 1, 3)).reshape((batch, 1, width)))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]
