"""The relative form of a ViT's block, as in BEiT and in SimMIM's ViT, with the names of timm's ``Beit``.

Attention has a bias for every relative position and keys have none; each branch is scaled feature by feature.
Shapes: L tokens with the class token first, D features, h heads, T entries of a table of biases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.blocks import Attention, Block
from ehm.config.encoders import LAYER_SCALE, compute_relative_index

__all__ = ["RelativeBias", "RelativeBlock", "look_up_biases"]


class RelativeBias(nn.Cell):
    """Biases of all pairs of the tokens of a ``grid``: (h, L, L)."""

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table, self.index = _create_table(grid, heads)

    def construct(self) -> Tensor:
        """Look up the biases: (h, L, L)."""
        return look_up_biases(self.relative_position_bias_table, self.index)


class RelativeAttention(Attention):
    """Attention with a bias added to its scores: that of its own table for a ``grid``, else the one it is given."""

    def __init__(self, width: int, heads: int, dtype: Any, grid: tuple[int, int] | None) -> None:
        super().__init__(width, heads, dtype, bias=False)
        self.is_fused = False
        self.q_bias = Parameter(Tensor(np.zeros(width, np.float32)))
        self.v_bias = Parameter(Tensor(np.zeros(width, np.float32)))
        self.has_table = grid is not None
        if grid is not None:
            self.relative_position_bias_table, self.index = _create_table(grid, heads)

    def project(self, x: Tensor) -> Tensor:
        """Project tokens to queries, keys and values: (B, L, D) -> (B, L, 3 * D)."""
        # keys have no bias
        bias = ops.cat((self.q_bias, ops.zeros_like(self.q_bias), self.v_bias))
        return self.qkv.project(x, bias)

    def compute_probs(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """See :meth:`Attention.compute_probs`."""
        if self.has_table:
            bias = look_up_biases(self.relative_position_bias_table, self.index)
        return super().compute_probs(q, k, bias)


class RelativeBlock(Block):
    """A block of the relative form; with a table of its own for a ``grid``, without one its bias is handed in."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        dtype: Any,
        grid: tuple[int, int] | None = None,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__(width, heads, mlp_ratio, dtype, RelativeAttention(width, heads, dtype, grid), epsilon)
        self.gamma_1 = Parameter(Tensor(np.full(width, LAYER_SCALE, np.float32)))
        self.gamma_2 = Parameter(Tensor(np.full(width, LAYER_SCALE, np.float32)))

    def finish_block(self, x: Tensor, mixed: Tensor, keep_attn: Tensor | None, keep_mlp: Tensor | None) -> Tensor:
        """See :meth:`Block.finish_block`."""
        # layer scale and drop path both multiply a branch
        scale_attn = self.gamma_1
        scale_mlp = self.gamma_2
        if keep_attn is not None:
            scale_attn = scale_attn * keep_attn
        if keep_mlp is not None:
            scale_mlp = scale_mlp * keep_mlp
        return super().finish_block(x, mixed, scale_attn, scale_mlp)


def _create_table(grid: tuple[int, int], heads: int) -> tuple[Parameter, Tensor]:
    """Return a table of zeros, (T, h), and the entry of each pair of tokens, (L, L)."""
    index = compute_relative_index(grid)
    return Parameter(Tensor(np.zeros((index.max() + 1, heads), np.float32))), Tensor(index)


def look_up_biases(table: Tensor, index: Tensor) -> Tensor:
    """Look up the biases of all pairs: (T, h), (L, L) -> (h, L, L)."""
    length = index.shape[0]
    return ops.gather(table, index.reshape((-1,)), 0).reshape((length, length, -1)).transpose((2, 0, 1))
