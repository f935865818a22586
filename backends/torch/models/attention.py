"""Attention probabilities, which fused kernels compute and discard (paper, section IV-A and V-E).

The blocks are timm's of a ViT, of a BEiT or of an Eva. Those of BEiT add a bias for relative positions to the scores:
one that all blocks share in pretraining, or their own. Those of Eva turn queries and keys by rotary positions.

Shapes: B images, N patches, L tokens with the class token and registers first, D features, h heads of d = D / h.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn.functional import linear, normalize

from ehm.backends.torch.models.adapters import compute_effective_weight, has_adapter

__all__ = [
    "MaskedBlock",
    "Places",
    "average_attention",
    "compute_attention_probs",
    "compute_class_attention",
    "compute_patch_similarity",
    "cosine_similarity",
    "run_block",
    "symmetrise",
]

UNFUSED = {("cpu", torch.bfloat16)}
"""Devices and types for which attention trains faster as plain matrix products than by torch's fused kernel.

torch 2.14 on a CPU with AMX, forward and backward of a decoder block (16 images, 16 heads, 197 tokens, one thread):
124 ms fused, most of it backward, and 46 ms as matrix products.
"""


class MaskedBlock(Block):
    """timm's block without masks and dropout, its attention unfused if that is faster."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        device = x.device.type
        dtype = x.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        # an update's dropout needs a call of its layer
        if (device, dtype) not in UNFUSED or has_adapter(self.attn.qkv):
            return super().forward(x)
        normed = self.norm1(x)
        q, k, v = _project_heads(self, normed, 3)
        return _finish_block(self, x, normed, torch.bmm(_compute_probs(self, q, k, Places()), v))


@dataclass(frozen=True)
class Places:
    """The places of tokens, as far as attention takes them into account.

    ``prefix`` tokens stand before the patches. ``bias`` (h, L, L), or (B, h, L, L), is added to the scores: BEiT's
    biases that all blocks share. ``rotations`` (N, 2d), or (B, 1, V, 2d), are sines and cosines that patches' queries
    and keys are turned by.
    """

    prefix: int = 1
    bias: Tensor | None = None
    rotations: Tensor | None = None


def run_block(block: Any, tokens: Tensor, places: Places) -> Tensor:
    """Pass (B, L, D) through one timm block: -> (B, L, D)."""
    # each of timm's blocks takes the places that its own network has, and no others
    if places.rotations is not None:
        passed: Tensor = block(tokens, rope=places.rotations)
    elif places.bias is not None:
        passed = block(tokens, shared_rel_pos_bias=places.bias)
    else:
        passed = block(tokens)
    return passed


def compute_attention_probs(block: Any, tokens: Tensor, places: Places) -> Tensor:
    """Compute the softmax attention of one timm block on its input: (B, L, D) -> (B, h, L, L)."""
    q, k = _project_heads(block, block.norm1(tokens), 2)
    return _compute_probs(block, q, k, places).unflatten(0, (len(tokens), -1))


def average_attention(blocks: Iterable[Any], tokens: Tensor, count: int, places: Places) -> Tensor:
    """Average attention over the heads of the first ``count`` timm blocks: (B, L, D) -> (B, L, L), float32.

    For use without gradient.
    """
    *earlier, last = list(blocks)[:count]
    total: Any = 0
    for block in earlier:
        normed = block.norm1(tokens)
        q, k, v = _project_heads(block, normed, 3)
        # the probabilities serve twice: for the mean, and for the block's output
        probs = _compute_probs(block, q, k, places)
        total = total + probs.unflatten(0, (len(tokens), -1)).sum(dim=1, dtype=torch.float32)
        tokens = _finish_block(block, tokens, normed, torch.bmm(probs, v))
    # nobody needs the output of the last block, nor therefore its values
    q, k = _project_heads(last, last.norm1(tokens), 2)
    probs = _compute_probs(last, q, k, places)
    total = total + probs.unflatten(0, (len(tokens), -1)).sum(dim=1, dtype=torch.float32)
    mean: Tensor = total / sum(block.attn.num_heads for block in (*earlier, last))
    return mean


def compute_class_attention(blocks: Iterable[Any], tokens: Tensor, places: Places) -> Tensor:
    """Compute the class token's attention to the patches in the last of ``blocks``: (B, L, D) -> (B, N), float32.

    It is the mean over heads. For use without gradient and drop path.
    """
    *earlier, last = blocks
    for block in earlier:
        tokens = run_block(block, tokens, places)
    q, k = _project_heads(last, last.norm1(tokens), 2)
    class_query = q[:, :1]
    probs = _compute_probs(last, class_query, k, places).unflatten(0, (len(tokens), -1))
    return probs[:, :, 0, places.prefix :].mean(dim=1, dtype=torch.float32)


def compute_patch_similarity(attention: Tensor, prefix: int = 1) -> Tensor:
    """Drop the ``prefix`` tokens before the patches and symmetrise (Eq. 6): (B, L, L) -> (B, N, N)."""
    return symmetrise(attention[:, prefix:, prefix:])


def cosine_similarity(features: Tensor) -> Tensor:
    """Compute the cosine of the angles between features, moved to [0, 1]: (B, N, D) -> (B, N, N), float32."""
    directions = normalize(features.float(), dim=-1)
    # moved, because balancing needs entries that are not negative; the trees are those of the cosine itself
    with torch.autocast(features.device.type, enabled=False):
        return symmetrise((1 + directions @ directions.transpose(1, 2)) / 2)


def symmetrise(matrix: Tensor) -> Tensor:
    """Return (A + A^T) / 2 of each of (B, N, N)."""
    return (matrix + matrix.transpose(1, 2)) / 2


def _project_heads(block: Any, normed: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Compute the first ``parts`` of queries, keys and values: (B, L, D) -> (B * h, L, d) each."""
    attn = block.attn
    if attn.qkv is None:  # a matrix for each, in timm's larger networks of EVA-02
        projections = (attn.q_proj, attn.k_proj, attn.v_proj)[:parts]
        return tuple(_split_heads(project(normed), attn.num_heads) for project in projections)
    weight, bias = compute_effective_weight(attn.qkv), attn.qkv.bias
    if getattr(attn, "q_bias", None) is not None:  # BEiT's and DINOv3's, whose keys have no bias
        bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    if parts < 3:
        rows = parts * weight.shape[0] // 3
        weight = weight[:rows]
        if bias is not None:
            bias = bias[:rows]
    fused = linear(normed, weight, bias).unflatten(2, (parts, attn.num_heads, -1))
    # one copy here, so that the batched products need none
    return fused.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """(B, L, D) -> (B * h, L, d)."""
    return projected.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)


def _compute_probs(block: Any, q: Tensor, k: Tensor, places: Places) -> Tensor:
    """Compute the attention of queries (B * h, Q, d) to keys (B * h, L, d): (B * h, Q, L)."""
    attn = block.attn
    if hasattr(attn, "q_norm"):  # timm's ViT, whose norms may be identities
        q, k = attn.q_norm(q), attn.k_norm(k)
    if places.rotations is not None:
        q = _rotate_patches(attn, q, places.rotations, places.prefix)
        k = _rotate_patches(attn, k, places.rotations, places.prefix)
    scores = torch.bmm(q * attn.scale, k.transpose(1, 2))
    bias = places.bias
    if getattr(attn, "relative_position_bias_table", None) is not None:
        bias = attn._get_rel_pos_bias()[0]  # the block's own
    if bias is not None:
        scores = (scores.unflatten(0, (-1, attn.num_heads)) + bias[:, : q.shape[1]]).flatten(0, 1)
    return scores.softmax(dim=-1)


def _rotate_patches(attn: Any, heads: Tensor, rotations: Tensor, prefix: int) -> Tensor:
    """Turn queries or keys of patches, (B * h, L, d), by ``rotations`` (N, 2d); those of the prefix stay."""
    patches = heads[:, prefix:]
    if not patches.shape[1]:
        # the class token's query alone
        return heads
    turned = apply_rot_embed_cat(patches, rotations, half=attn.rotate_half)
    return torch.cat([heads[:, :prefix], turned], dim=1).type_as(heads)


def _finish_block(block: Any, tokens: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
    """Compute the rest of a timm block after its attention has ``mixed`` the values (B * h, L, d): -> (B, L, D)."""
    attn = block.attn
    mixed = mixed.unflatten(0, (len(tokens), -1)).transpose(1, 2).flatten(2)
    # a norm and a gate that the attention of timm's ViT and Eva may have
    if hasattr(attn, "norm"):
        mixed = attn.norm(mixed)
    if getattr(attn, "gate", None) is not None:
        mixed = mixed * attn.gate(normed).sigmoid()
    if hasattr(block, "gamma_1"):  # BEiT's and Eva's
        refined: Tensor = tokens + _scale_branch(attn.proj(mixed), block.gamma_1)
        return refined + _scale_branch(block.mlp(block.norm2(refined)), block.gamma_2)
    tokens = tokens + block.ls1(attn.proj(mixed))
    finished: Tensor = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return finished


def _scale_branch(branch: Tensor, gamma: Tensor | None) -> Tensor:
    return branch if gamma is None else gamma * branch
