"""Attention as numbers: what fused kernels compute and throw away (paper, section IV-A and V-E).

Shapes: B images, L tokens with the class token first, D features, h heads of d = D / h features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

__all__ = ["MaskedBlock", "attention_probs", "mean_attention", "patch_similarity"]

SLOW_BACKWARD = {("cpu", torch.bfloat16)}
"""Devices and types where the backward pass of torch's fused attention takes longer than plain matrix products.

torch 2.14 on a CPU with AMX: 110 ms for a ViT-B decoder block of 16 images, against 45 ms
(``benchmarks/pretrain_step.py --parts``).
"""


class MaskedBlock(Block):
    """timm's block without masks and dropout, with the faster backward pass of the device in its attention."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        attn: Any = self.attn
        q, k, v = attn.qkv(self.norm1(x)).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        slow = (q.device.type, q.dtype) in SLOW_BACKWARD
        mixed = _Attend.apply(q, k, v) if slow else scaled_dot_product_attention(q, k, v)
        x = x + attn.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class _Attend(torch.autograd.Function):
    """Fused attention (B, h, L, d) with the probabilities computed again in the backward pass, as matrix products."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return scaled_dot_product_attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = ctx.saved_tensors[0].shape[-1] ** -0.5
        q, k, v, mixed = (tensor.contiguous() for tensor in (*ctx.saved_tensors, *gradients))
        q = q * scale
        probs = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        wanted = mixed @ v.transpose(-2, -1)
        scores = torch.ops.aten._softmax_backward_data(wanted, probs, -1, probs.dtype)
        return scores @ (k * scale), scores.transpose(-2, -1) @ q, probs.transpose(-2, -1) @ mixed


def attention_probs(block: Any, tokens: Tensor) -> Tensor:
    """Softmax attention of one timm block on its input: (B, L, D) -> (B, h, L, L). Needs queries and keys only."""
    q, k = _heads(block, block.norm1(tokens), 2)
    return _probs(block, q, k).unflatten(0, (len(tokens), -1))


def mean_attention(blocks: Iterable[Any], tokens: Tensor, count: int) -> Tensor:
    """Attention averaged over the heads of the first ``count`` timm blocks: (B, L, D) -> (B, L, L), float32.

    Each block's probabilities serve twice, for the mean and for its output; of the last block, only queries and keys
    are computed. For use without gradient.
    """
    used = list(blocks)[:count]
    total: Any = 0
    for index, block in enumerate(used):
        last = index == len(used) - 1
        normed = block.norm1(tokens)
        q, k, *v = _heads(block, normed, 2 if last else 3)
        probs = _probs(block, q, k)
        total = total + probs.unflatten(0, (len(tokens), -1)).sum(dim=1, dtype=torch.float32)
        if not last:
            tokens = _finish(block, tokens, normed, probs @ v[0])
    mean: Tensor = total / sum(block.attn.num_heads for block in used)
    return mean


def patch_similarity(attention: Tensor) -> Tensor:
    """Drop the class token's row and column and symmetrise (Eq. 6): (B, L, L) -> (B, L - 1, L - 1)."""
    patches = attention[:, 1:, 1:]
    return (patches + patches.transpose(1, 2)) / 2


def _heads(block: Any, normed: Tensor, parts: int) -> tuple[Tensor, ...]:
    """The first ``parts`` of queries, keys and values: (B, L, D) -> (B * h, L, d) each."""
    attn = block.attn
    weight, bias = attn.qkv.weight, attn.qkv.bias
    if parts < 3:
        rows = parts * weight.shape[0] // 3
        weight, bias = weight[:rows], None if bias is None else bias[:rows]
    fused = linear(normed, weight, bias).unflatten(2, (parts, attn.num_heads, -1))
    return fused.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)  # one copy, so that batched products need none


def _probs(block: Any, q: Tensor, k: Tensor) -> Tensor:
    q, k = block.attn.q_norm(q), block.attn.k_norm(k)
    return torch.bmm(q * block.attn.scale, k.transpose(1, 2)).softmax(dim=-1)


def _finish(block: Any, tokens: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a timm block after its attention has ``mixed`` the values (B * h, L, d): -> (B, L, D)."""
    attn = block.attn
    mixed = attn.norm(mixed.unflatten(0, (len(tokens), -1)).transpose(1, 2).flatten(2))
    if getattr(attn, "gate", None) is not None:  # younger than the oldest timm that works
        mixed = mixed * attn.gate(normed).sigmoid()
    tokens = tokens + block.ls1(attn.proj(mixed))
    finished: Tensor = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return finished
