"""An encoder of the visible patches alone, as MAE pretrains it.

Every parameter has timm's name. An objective (:mod:`ehm.backends.torch.objectives`) adds what predicts the hidden
patches, and its loss, in a subclass.

Shapes: B images, N patches, V visible ones, P tokens before them, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from ehm.backends.torch.models.attention import MaskedBlock
from ehm.backends.torch.models.patches import gather_tokens
from ehm.backends.torch.models.vit_parts import VitParts, build_parts
from ehm.config.encoders import VitSpec, compute_sincos_positions

__all__ = ["VisibleEncoder", "build_blocks", "build_fixed_positions", "create_norm", "initialise_linear_layers"]

create_norm: Any = partial(nn.LayerNorm, eps=1e-6)
"""The norm of plain ViTs: (width) -> module; torch's own epsilon is 1e-5."""


class VisibleEncoder(VitParts):
    """A ViT of ``spec`` that encodes visible patches; a subclass adds what predicts the others.

    The positions of a plain ViT are MAE's fixed ones, or those of the weights that it begins with.
    """

    def __init__(self, spec: VitSpec) -> None:
        super().__init__(spec, _PlainParts(spec) if spec.is_plain else build_parts(spec))

    def init_weights(self) -> None:
        """Set the patch embedding and the class token as MAE's published code does."""
        # as the matrix of a linear layer, whose fan-in is that of a whole patch
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.spec.width, -1))
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    def encode(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Encode the patches at indices ``visible``: (B, N, D), (B, V) -> (B, P + V, D).

        There may be several masks of an image, one after the other: (k * B, V) -> (k * B, P + V, D).
        """
        encoded: Tensor = self.norm(self.run_stack(gather_tokens(tokens, visible), self.locate(visible)))
        return encoded


class _PlainParts(nn.Module):
    """The parts of MAE's own encoder, whose blocks choose the faster kernel."""

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(spec.image_size, spec.patch_size, spec.channels, spec.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.pos_embed = build_fixed_positions(spec, spec.width)
        self.blocks = build_blocks(spec, spec.width, spec.depth, spec.heads)
        self.norm = create_norm(spec.width)


def build_blocks(spec: VitSpec, width: int, depth: int, heads: int) -> nn.ModuleList:
    """Return ``depth`` blocks, ``width`` wide, with the ratio of hidden features of ``spec``."""
    return nn.ModuleList(
        MaskedBlock(width, heads, spec.mlp_ratio, qkv_bias=True, norm_layer=create_norm) for _ in range(depth)
    )


def build_fixed_positions(spec: VitSpec, width: int) -> nn.Parameter:
    """Return sine-cosine positions of the class token and the patches, which are not trained: (1, 1 + N, width)."""
    return nn.Parameter(torch.from_numpy(compute_sincos_positions(width, spec.grid)), requires_grad=False)


def initialise_linear_layers(model: nn.Module) -> None:
    """Set all linear layers of ``model`` as MAE's published code does: Xavier's uniform weights and no bias."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
