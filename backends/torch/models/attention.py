"""Attention as numbers: what fused kernels compute and throw away (paper, section IV-A and V-E).

Shapes: B images, L tokens with the class token first, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["attention_probs", "mean_attention", "patch_similarity"]


def attention_probs(block: Any, tokens: Tensor) -> Tensor:
    """Softmax attention of one timm block on its input: (B, L, D) -> (B, heads, L, L). Needs queries and keys only."""
    attn = block.attn
    batch, length, width = tokens.shape
    # the first two thirds of the fused projection: the values are never computed
    weight, bias = attn.qkv.weight[: 2 * width], attn.qkv.bias
    qk = nn.functional.linear(block.norm1(tokens), weight, None if bias is None else bias[: 2 * width])
    q, k = qk.reshape(batch, length, 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    return ((q * attn.scale) @ k.transpose(-2, -1)).softmax(dim=-1)


def mean_attention(blocks: nn.ModuleList, tokens: Tensor, count: int) -> Tensor:
    """Attention averaged over the heads of the first ``count`` blocks: (B, L, D) -> (B, L, L), float32.

    Only queries and keys of the last of them are computed.
    """
    used = list(blocks)[:count]
    total = torch.zeros((), dtype=torch.float32, device=tokens.device)
    for index, block in enumerate(used):
        total = total + attention_probs(block, tokens).float().mean(dim=1)
        if index < len(used) - 1:
            tokens = block(tokens)
    return total / len(used)


def patch_similarity(attention: Tensor) -> Tensor:
    """Drop the class token's row and column and symmetrise (Eq. 6): (B, L, L) -> (B, L - 1, L - 1)."""
    patches = attention[:, 1:, 1:]
    return (patches + patches.transpose(1, 2)) / 2
