"""The parts of timm's ViTs, and the way of tokens through them: whole images, or some of their patches.

timm's networks take whole images. Pretraining hides patches between the embedding and the blocks, and reads attention
on the way, so that it holds their parts under their names and walks through them itself.

Shapes: B images, N patches, V visible ones, P tokens before them (class token, registers), L = P + V, D width, h heads
of d features.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models.beit import Beit
from torch import Tensor, nn
from torch.nn.functional import embedding

from ehm.backends.torch.models.attention import (
    Places,
    average_attention,
    compute_class_attention,
    compute_patch_similarity,
    run_block,
)
from ehm.backends.torch.models.patches import embed_patches
from ehm.backends.torch.models.vit import build_vit, find_vit_class, list_vit_arguments
from ehm.config.encoders import VitSpec

__all__ = ["VitParts", "build_parts"]

_PARTS = ("patch_embed", "cls_token", "reg_token", "pos_embed", "rel_pos_bias", "rope", "norm_pre", "blocks", "norm")
"""Names of the parts in timm's networks, in the order in which tokens meet them; a network may lack some."""


def build_parts(spec: VitSpec, drop_path: float = 0.0) -> Any:
    """Return timm's network of ``spec`` without a head, in the form of pretraining.

    There, all blocks share one table of relative positions; fine-tuning has one in each.
    """
    if spec.relative:
        arguments = list_vit_arguments(spec, drop_path)
        return Beit(**arguments, num_classes=0, use_shared_rel_pos_bias=True, use_fc_norm=False)
    return build_vit(spec, drop_path=drop_path, fc_norm=False)


class VitParts(nn.Module):
    """A ViT of ``spec`` that consists of the parts of ``network``, which has timm's names."""

    patch_embed: Any
    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None
    pos_embed: nn.Parameter | None
    rel_pos_bias: Any
    rope: Any
    norm_pre: Any
    blocks: Any
    norm: Any

    def __init__(self, spec: VitSpec, network: Any) -> None:
        super().__init__()
        self.spec = spec
        for name in _PARTS:
            setattr(self, name, getattr(network, name, None))

    @property
    def stack(self) -> Any:
        """The blocks of the encoder."""
        return self.blocks

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of the names in each layer of its network; other parameters lie above the encoder."""
        network = find_vit_class(self.spec)
        patterns: dict[str, Any] = network.group_matcher(cast(Any, self), coarse)
        return patterns

    def embed(self, images: Tensor) -> Tensor:
        """Embed normalised (B, 3, H, W) as patch tokens with their added positions, if there are any: (B, N, D)."""
        tokens = embed_patches(images, self.patch_embed.proj, self.spec.patch_size)
        if self.spec.form.norm_patches:
            tokens = self.patch_embed.norm(tokens)
        positions = self.get_patch_positions()
        return tokens if positions is None else tokens + positions

    def get_patch_positions(self) -> Tensor | None:
        """Return the positions that are added to patches (1, N, D), None if there are none."""
        if self.pos_embed is None:
            return None
        positions: Tensor = self.pos_embed[:, self.spec.form.position_tokens :]
        return positions

    def locate(self, visible: Tensor | None = None) -> Places:
        """Return the places of all patches, or of those at indices ``visible`` (B, V), as attention needs them."""
        prefix = self.spec.form.prefix_tokens
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        rotations = None if self.rope is None else self.rope.get_embed()
        if visible is None:
            return Places(prefix, bias, rotations)
        if bias is not None:
            bias = _select_pairs(bias, visible, prefix)
        if rotations is not None:
            # one axis for the heads, which share the angles
            rotations = embedding(visible, rotations).unsqueeze(1)
        return Places(prefix, bias, rotations)

    def prepend_prefix(self, tokens: Tensor) -> Tensor:
        """Put the class token and registers before patches: (B, V, D) -> (B, L, D), as the first block takes them."""
        parts: list[Tensor] = [part for part in (self.cls_token, self.reg_token) if part is not None]
        if parts:
            first = torch.cat(parts, dim=1)
            if self.pos_embed is not None and self.spec.form.prefix_positions:
                # its positions are zero until it is fine-tuned
                first = first + self.pos_embed[:, : self.spec.form.position_tokens]
            tokens = torch.cat([first.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        if self.norm_pre is not None:
            tokens = self.norm_pre(tokens)
        return tokens

    def run_stack(self, tokens: Tensor, places: Places, count: int | None = None) -> Tensor:
        """Pass patch tokens through the first ``count`` blocks, or all: (B, V, D) -> (B, L, D)."""
        tokens = self.prepend_prefix(tokens)
        for block in self.blocks[:count]:
            tokens = run_block(block, tokens, places)
        return tokens

    def compute_similarity(self, tokens: Tensor, blocks: int) -> Tensor:
        """Compute the symmetrised mean attention of the first ``blocks`` blocks (Eq. 6): (B, N, D) -> (B, N, N)."""
        places = self.locate()
        attention = average_attention(self.blocks, self.prepend_prefix(tokens), blocks, places)
        return compute_patch_similarity(attention, places.prefix)

    def compute_features(self, tokens: Tensor, blocks: int) -> Tensor:
        """Compute the tokens behind the first ``blocks`` blocks over all patches: (B, N, D) -> (B, N, D)."""
        places = self.locate()
        return self.run_stack(tokens, places, blocks)[:, places.prefix :]

    def pool_features(self, tokens: Tensor) -> Tensor:
        """Average over all patches what the last norm gives: (B, N, D) -> (B, D), float32."""
        places = self.locate()
        encoded: Tensor = self.norm(self.run_stack(tokens, places))
        return encoded[:, places.prefix :].mean(dim=1, dtype=torch.float32)

    def compute_saliency(self, tokens: Tensor) -> Tensor:
        """Compute the class token's attention to all patches in the last block: (B, N, D) -> (B, N)."""
        return compute_class_attention(self.blocks, self.prepend_prefix(tokens), self.locate())


def _select_pairs(bias: Tensor, visible: Tensor, prefix: int) -> Tensor:
    """Select the biases between visible tokens: (h, P + N, P + N), (B, V) -> (B, h, L, L)."""
    tokens = bias.shape[-1]
    first = torch.arange(prefix, device=visible.device).expand(len(visible), -1)
    indices = torch.cat([first, visible + prefix], dim=1)
    pairs = indices.unsqueeze(2) * tokens + indices.unsqueeze(1)
    # an embedding, because torch-npu documents no gradient of other selections for bfloat16 on the 910B
    return embedding(pairs, bias.flatten(1).t()).permute(0, 3, 1, 2)
