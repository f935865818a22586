"""The Transformer block of a ViT, and its attention probabilities (paper, section IV-A).

All operators are on both of MindSpore's targets but one, the fused attention of Ascend, which facts of the target
choose (:mod:`ehm.backends.mindspore.engine.devices`). ``dtype`` is the type of matrix products;
residuals, norms and softmax are float32. Shapes: B images, L tokens with the class token first, D features, h heads of
d = D / h features.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.engine.devices import get_current_facts

__all__ = [
    "Attention",
    "Block",
    "Dense",
    "LayerNorm",
    "apply_linear",
    "average_attention",
    "can_fuse_attention",
    "compute_attention_probs",
    "compute_class_attention",
    "compute_patch_similarity",
    "cosine_similarity",
    "recompute_activations",
    "run_blocks",
    "symmetrise",
]

_FUSED_WIDTH_STEP = 16
_FUSED_WIDTH_LIMIT = 512
"""Features of a head that ``ops.flash_attention_score`` takes: multiples of the first, up to the second."""


def apply_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: Any) -> Tensor:
    """Multiply (..., I) by (O, I) transposed and add (O,), if there is a bias, in ``dtype``: (..., O)."""
    rows = x.reshape((-1, x.shape[-1])).astype(dtype)
    product = ops.MatMul(transpose_b=True)(rows, weight.astype(dtype))
    if bias is not None:
        product = product + bias.astype(dtype)
    return product.reshape((*x.shape[:-1], weight.shape[0]))


class Dense(nn.Cell):
    """A linear layer: (..., I) -> (..., O), with a ``bias`` or without one."""

    def __init__(self, inputs: int, outputs: int, dtype: Any, bias: bool = True) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((outputs, inputs), np.float32)))
        self.bias = Parameter(Tensor(np.zeros(outputs, np.float32))) if bias else None
        self.dtype = dtype

    def construct(self, x: Tensor) -> Tensor:
        """See :func:`apply_linear`."""
        return self.project(x, self.bias)

    def project(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply by the weight and add ``bias``, which may be another one than the layer's own."""
        return apply_linear(x, self.weight, bias, self.dtype)


class LayerNorm(nn.Cell):
    """Layer normalisation of the last axis in float32, with timm's parameter names; the ViT's epsilon if left out."""

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(width, np.float32)))
        self.bias = Parameter(Tensor(np.zeros(width, np.float32)))
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=epsilon)

    def construct(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        # float16 would overflow in the variance
        return self.norm(x.astype(ms.float32), self.weight, self.bias)[0]


class Attention(nn.Cell):
    """Multi-head self-attention: (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int, dtype: Any, bias: bool = True) -> None:
        super().__init__()
        self.qkv = Dense(width, 3 * width, dtype, bias)
        self.proj = Dense(width, width, dtype)
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.unstack = ops.Unstack(axis=0, num=3)
        self.unstack_fused = ops.Unstack(axis=2, num=3)
        # a bias for the scores has no gradient in the fused operator, and a table of biases would not learn
        self.is_fused = can_fuse_attention(width // heads, dtype)

    def split_heads(self, x: Tensor, rotations: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values: (B, L, D) -> (B, h, L, d) each; ``rotations`` are for other forms."""
        batch, tokens, width = x.shape
        qkv = self.project(x).reshape((batch, tokens, 3, self.heads, width // self.heads)).transpose((2, 0, 3, 1, 4))
        # indexing instead took three tenths of a step on a CPU
        return self.unstack(qkv)

    def project(self, x: Tensor) -> Tensor:
        """Project tokens to queries, keys and values: (B, L, D) -> (B, L, 3 * D)."""
        return self.qkv(x)

    def compute_probs(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute softmax attention in float32: (B, h, K, d), (B, h, L, d) -> (B, h, K, L) of the first K tokens.

        ``bias`` (h, L, L), (B, h, L, L) or (1, 1, 1, L), is added to the scores.
        """
        scores = ops.BatchMatMul(transpose_b=True)(q * self.scale, k).astype(ms.float32)
        if bias is not None:
            scores = scores + bias[..., : q.shape[2], :]
        return ops.softmax(scores, axis=-1)

    def mix_values(self, probs: Tensor, v: Tensor) -> Tensor:
        """Mix the values by the probabilities: (B, h, L, L), (B, h, L, d) -> (B, L, D)."""
        batch, heads, tokens, width = v.shape
        # back to the type of matrix products
        mixed = ops.BatchMatMul()(probs.astype(v.dtype), v).transpose((0, 2, 1, 3))
        return self.proj(mixed.reshape((batch, tokens, heads * width)))

    def construct(self, x: Tensor, bias: Tensor | None = None, rotations: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); for ``bias`` see :meth:`compute_probs`."""
        if self.is_fused and bias is None:
            return self.attend_fused(x)
        q, k, v = self.split_heads(x, rotations)
        return self.mix_values(self.compute_probs(q, k, bias), v)

    def attend_fused(self, x: Tensor) -> Tensor:
        """Compute attention in one operator, which leaves no probabilities behind: (B, L, D) -> (B, L, D)."""
        batch, tokens, width = x.shape
        q, k, v = self.unstack_fused(self.project(x).reshape((batch, tokens, 3, width)))
        # in this layout heads lie side by side in the last axis, and nothing is transposed
        mixed = ops.flash_attention_score(q, k, v, self.heads, scalar_value=self.scale, input_layout="BSH")
        return self.proj(mixed)


def can_fuse_attention(head_width: int, dtype: Any) -> bool:
    """Return whether this process's target has fused attention for heads of this width (operator's page, 2.10)."""
    names = get_current_facts().fused_attention_dtypes
    fits = head_width % _FUSED_WIDTH_STEP == 0 and head_width <= _FUSED_WIDTH_LIMIT
    return fits and dtype in [getattr(ms, name) for name in names]


class Mlp(nn.Cell):
    """Two linear layers with an exact GELU between them: (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden: int, dtype: Any) -> None:
        super().__init__()
        self.fc1 = Dense(width, hidden, dtype)
        self.fc2 = Dense(hidden, width, dtype)

    def construct(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(ops.gelu(self.fc1(x), approximate="none"))


class Block(nn.Cell):
    """A pre-norm Transformer block: (B, L, D) -> (B, L, D)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        dtype: Any,
        attn: Attention | None = None,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, epsilon)
        self.attn = Attention(width, heads, dtype) if attn is None else attn
        self.norm2 = LayerNorm(width, epsilon)
        self.mlp = Mlp(width, int(width * mlp_ratio), dtype)

    def construct(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        rotations: Tensor | None = None,
        keep_attn: Tensor | None = None,
        keep_mlp: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D).

        ``bias`` and ``rotations`` are the attention's. ``keep_attn`` and ``keep_mlp`` (B, 1, 1) are the factors of both
        branches that drop path draws.
        """
        return self.finish_block(x, self.attn(self.norm1(x), bias, rotations), keep_attn, keep_mlp)

    def finish_block(self, x: Tensor, mixed: Tensor, keep_attn: Tensor | None, keep_mlp: Tensor | None) -> Tensor:
        """Compute what follows attention, whose output for ``x`` is ``mixed`` (B, L, D)."""
        if keep_attn is not None:
            mixed = mixed * keep_attn
        x = x + mixed
        refined = self.mlp(self.norm2(x))
        if keep_mlp is not None:
            refined = refined * keep_mlp
        return x + refined


def recompute_activations(model: nn.Cell) -> None:
    """Keep no activations inside the blocks of ``model``: the backward pass computes them again (Chen et al., 2016)."""
    for _, cell in model.cells_and_names():
        if isinstance(cell, Block):
            cell.recompute()


def run_blocks(
    blocks: Any,
    tokens: Tensor,
    bias: Tensor | None = None,
    rotations: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Run all ``blocks``: (B, L, D) -> (B, L, D); ``keep`` (2 * depth, B, 1, 1) are drop path's factors."""
    for index, block in enumerate(blocks):
        if keep is None:
            tokens = block(tokens, bias, rotations)
        else:
            tokens = block(tokens, bias, rotations, keep[2 * index], keep[2 * index + 1])
    return tokens


def compute_attention_probs(
    block: Block, tokens: Tensor, bias: Tensor | None = None, rotations: Tensor | None = None
) -> Tensor:
    """Compute the softmax attention of one block on its input: (B, L, D) -> (B, h, L, L)."""
    q, k, _ = block.attn.split_heads(block.norm1(tokens), rotations)
    return block.attn.compute_probs(q, k, bias)


def average_attention(
    blocks: Any, tokens: Tensor, count: int, bias: Tensor | None = None, rotations: Tensor | None = None
) -> Tensor:
    """Average attention over the heads of the first ``count`` blocks: (B, L, D) -> (B, L, L), float32.

    All blocks share the ``bias`` and the ``rotations``, if any.
    """
    used = min(count, len(blocks))
    total = ops.zeros((tokens.shape[0], tokens.shape[1], tokens.shape[1]), ms.float32)
    for index in range(used):
        block = blocks[index]
        q, k, v = block.attn.split_heads(block.norm1(tokens), rotations)
        probs = block.attn.compute_probs(q, k, bias)
        total = total + probs.mean(axis=1)
        # the probabilities serve a second time, for the block's output; nobody needs that of the last block
        if index < used - 1:
            tokens = block.finish_block(tokens, block.attn.mix_values(probs, v), None, None)
    return total / used


def compute_class_attention(
    blocks: Any, tokens: Tensor, bias: Tensor | None = None, rotations: Tensor | None = None, prefix: int = 1
) -> Tensor:
    """Compute the class token's attention to the patches in the last of ``blocks``: (B, L, D) -> (B, N), float32.

    It is the mean over heads; ``prefix`` tokens stand before the patches. All blocks share the ``bias`` and the
    ``rotations``, if any.
    """
    tokens = run_blocks(blocks[:-1], tokens, bias, rotations)
    last = blocks[-1]
    q, k, _ = last.attn.split_heads(last.norm1(tokens), rotations)
    return last.attn.compute_probs(q[:, :, :1], k, bias)[:, :, 0, prefix:].mean(axis=1)


def compute_patch_similarity(attention: Tensor, prefix: int = 1) -> Tensor:
    """Drop the ``prefix`` tokens before the patches and symmetrise (Eq. 6): (B, L, L) -> (B, N, N)."""
    return symmetrise(attention[:, prefix:, prefix:])


def cosine_similarity(features: Tensor) -> Tensor:
    """Compute the cosine of the angles between features, moved to [0, 1]: (B, N, D) -> (B, N, N), float32."""
    features = features.astype(ms.float32)
    length = ops.sqrt(ops.square(features).sum(axis=-1, keepdims=True))
    directions = features / ops.maximum(length, 1e-12)
    # moved, because balancing needs entries that are not negative; the trees are those of the cosine itself
    return symmetrise((1 + ops.BatchMatMul(transpose_b=True)(directions, directions)) / 2)


def symmetrise(matrix: Tensor) -> Tensor:
    """Return (A + A^T) / 2 of each of (B, N, N)."""
    return (matrix + matrix.swapaxes(1, 2)) / 2
