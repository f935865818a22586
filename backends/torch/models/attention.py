"""Attention as numbers: what fused kernels compute and throw away (paper, section IV-A and V-E).

For timm's blocks of a ViT and of a BEiT; the latter add a bias for relative positions, (h, L, L), to the scores: one
that all blocks ``share`` in pretraining, or their own.

Shapes: B images, L tokens with the class token first, D features, h heads of d = D / h features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn.functional import linear, normalize

__all__ = [
    "MaskedBlock",
    "attention_probs",
    "class_attention",
    "cosine_similarity",
    "mean_attention",
    "patch_similarity",
    "symmetrise",
]

UNFUSED = {("cpu", torch.bfloat16)}
"""Devices and types where attention trains faster as plain matrix products than by torch's fused kernel.

torch 2.14 on a CPU with AMX, forward and backward of a decoder block (16 images, 16 heads, 197 tokens, one thread):
124 ms fused, most of it backward, 46 ms so.
"""


class MaskedBlock(Block):
    """timm's block without masks and dropout, its attention unfused where that is faster."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        if (kind, dtype) not in UNFUSED:
            return super().forward(x)
        normed = self.norm1(x)
        q, k, v = _project_heads(self, normed, 3)
        return _finish_block(self, x, normed, torch.bmm(_compute_probs(self, q, k), v))


def attention_probs(block: Any, tokens: Tensor) -> Tensor:
    """Softmax attention of one timm block on its input: (B, L, D) -> (B, h, L, L). Needs queries and keys only."""
    q, k = _project_heads(block, block.norm1(tokens), 2)
    return _compute_probs(block, q, k).unflatten(0, (len(tokens), -1))


def mean_attention(blocks: Iterable[Any], tokens: Tensor, count: int, share: Tensor | None = None) -> Tensor:
    """Attention averaged over the heads of the first ``count`` timm blocks: (B, L, D) -> (B, L, L), float32.

    Each block's probabilities serve twice, for the mean and for its output; of the last block, only queries and keys
    are computed. For use without gradient.
    """
    used = list(blocks)[:count]
    total: Any = 0
    for index, block in enumerate(used):
        last = index == len(used) - 1
        normed = block.norm1(tokens)
        q, k, *v = _project_heads(block, normed, 2 if last else 3)
        probs = _compute_probs(block, q, k, share)
        total = total + probs.unflatten(0, (len(tokens), -1)).sum(dim=1, dtype=torch.float32)
        if not last:
            tokens = _finish_block(block, tokens, normed, torch.bmm(probs, v[0]))
    mean: Tensor = total / sum(block.attn.num_heads for block in used)
    return mean


def class_attention(blocks: Iterable[Any], tokens: Tensor, share: Tensor | None = None) -> Tensor:
    """The class token's attention to the patches in the last of timm's ``blocks``: (B, L, D) -> (B, L - 1), float32.

    Mean over heads. Of the last block, keys and one query a head are used. For use without gradient and drop path.
    """
    *before, last = blocks
    for block in before:
        tokens = block(tokens) if share is None else block(tokens, shared_rel_pos_bias=share)
    q, k = _project_heads(last, last.norm1(tokens), 2)
    probs = _compute_probs(last, q[:, :1], k, share).unflatten(0, (len(tokens), -1))
    return probs[:, :, 0, 1:].mean(dim=1, dtype=torch.float32)


def patch_similarity(attention: Tensor) -> Tensor:
    """Drop the class token's row and column and symmetrise (Eq. 6): (B, L, L) -> (B, L - 1, L - 1)."""
    return symmetrise(attention[:, 1:, 1:])


def cosine_similarity(features: Tensor) -> Tensor:
    """Cosine of the angles between features, moved to [0, 1]: (B, N, D) -> (B, N, N), float32.

    The trees are those of the cosine itself, and no entry is negative, as balancing needs it.
    """
    directions = normalize(features.float(), dim=-1)
    with torch.autocast(features.device.type, enabled=False):
        return symmetrise((1 + directions @ directions.transpose(1, 2)) / 2)


def symmetrise(matrix: Tensor) -> Tensor:
    """(A + A^T) / 2 of each of (B, N, N)."""
    return (matrix + matrix.transpose(1, 2)) / 2


def _project_heads(block: Any, normed: Tensor, parts: int) -> tuple[Tensor, ...]:
    """The first ``parts`` of queries, keys and values: (B, L, D) -> (B * h, L, d) each."""
    attn = block.attn
    weight, bias = attn.qkv.weight, attn.qkv.bias
    if getattr(attn, "q_bias", None) is not None:
        bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    if parts < 3:
        rows = parts * weight.shape[0] // 3
        weight, bias = weight[:rows], None if bias is None else bias[:rows]
    fused = linear(normed, weight, bias).unflatten(2, (parts, attn.num_heads, -1))
    return fused.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)  # one copy, so that batched products need none


def _compute_probs(block: Any, q: Tensor, k: Tensor, share: Tensor | None = None) -> Tensor:
    attn = block.attn
    if hasattr(attn, "q_norm"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    scores = torch.bmm(q * attn.scale, k.transpose(1, 2))
    if getattr(attn, "relative_position_bias_table", None) is not None:
        share = attn._get_rel_pos_bias()[0]
    if share is not None:
        scores = (scores.unflatten(0, (-1, attn.num_heads)) + share[:, : q.shape[1]]).flatten(0, 1)
    return scores.softmax(dim=-1)


def _finish_block(block: Any, tokens: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a timm block after its attention has ``mixed`` the values (B * h, L, d): -> (B, L, D)."""
    attn = block.attn
    mixed = mixed.unflatten(0, (len(tokens), -1)).transpose(1, 2).flatten(2)
    if hasattr(block, "gamma_1"):  # BEiT's
        refined: Tensor = tokens + _scale_branch(attn.proj(mixed), block.gamma_1)
        return refined + _scale_branch(block.mlp(block.norm2(refined)), block.gamma_2)
    mixed = attn.norm(mixed)
    if getattr(attn, "gate", None) is not None:  # younger than the oldest timm that works
        mixed = mixed * attn.gate(normed).sigmoid()
    tokens = tokens + block.ls1(attn.proj(mixed))
    finished: Tensor = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return finished


def _scale_branch(branch: Tensor, gamma: Tensor | None) -> Tensor:
    return branch if gamma is None else gamma * branch
