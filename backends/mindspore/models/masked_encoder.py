"""Encoders that see a mask token in place of what is hidden, as SimMIM and BEiT pretrain.

They are encoders with a ``mask_token`` more. An objective (:mod:`ehm.backends.mindspore.objectives`) adds its head and
its loss in a subclass.

Shapes: B images, N output tokens of D features, k masks an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, ops

from ehm.backends.mindspore.models.swin import SwinParts
from ehm.backends.mindspore.models.vit_parts import VitParts
from ehm.config.encoders import SwinSpec, VitSpec

__all__ = ["MaskedSwin", "MaskedVit", "encode_masked_images"]


def encode_masked_images(
    encoder: Any, images: Tensor, visible: Tensor, restore: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Encode normalised (B, 3, H, W) with their hidden cells covered: (k * B, N, D), with k masks an image.

    ``visible`` (k * B, V) and ``restore`` (k * B, N) are indices of cells; ``keep`` (2 * blocks, k * B, 1, 1) are drop
    path's factors of every branch.
    """
    # the places of hidden cells come behind those of the visible ones
    return encoder.encode(encoder.embed(images), restore >= visible.shape[1], keep)


class MaskedVit(VitParts):
    """A ViT that sees mask tokens; one with relative positions has one table of them for all blocks, as BEiT's."""

    def __init__(self, spec: VitSpec, dtype: Any) -> None:
        super().__init__(spec, dtype)
        self.mask_token = _create_mask_token(spec.width)

    def encode(self, tokens: Tensor, hidden: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode tokens of :meth:`embed`, with those hidden (k * B, N) covered: (k * B, N, D)."""
        mask_token = self.mask_token
        if self.pos_embed is not None:
            # as if it had been put in the place of the patch before positions were added
            mask_token = mask_token + self.pos_embed[:, self.position_tokens :]
        encoded = self.run_stack(_cover(tokens, mask_token, hidden), None, None, keep)
        return self.norm(encoded)[:, self.prefix :]


class MaskedSwin(SwinParts):
    """A Swin as SimMIM pretrains it; N are the tokens of its last stage."""

    def __init__(self, spec: SwinSpec, dtype: Any) -> None:
        super().__init__(spec, dtype)
        self.mask_token = _create_mask_token(spec.width)
        self.patches_per_cell = spec.stride // spec.patch_size

    def encode(self, tokens: Tensor, hidden: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode tokens of :meth:`embed`, with hidden cells of the output grid (k * B, N) covered: (k * B, N, D)."""
        covered = _cover(tokens, self.mask_token, _spread_mask(hidden, self.grid, self.patches_per_cell))
        return self.norm(self.run_stack(covered, None, keep))


def _create_mask_token(width: int) -> Parameter:
    return Parameter(Tensor(np.zeros((1, 1, width), np.float32)))


def _spread_mask(mask: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Give each cell of a ``grid`` its ``factor`` x ``factor`` tokens: (B, N) -> (B, N * factor**2)."""
    batch = mask.shape[0]
    down, across = grid
    cells = ops.broadcast_to(mask.reshape((batch, down, 1, across, 1)), (batch, down, factor, across, factor))
    return cells.reshape((batch, -1))


def _cover(tokens: Tensor, mask_token: Tensor, hidden: Tensor) -> Tensor:
    """Put the mask token in place of ``hidden`` patches (k * B, N): (B, N, D) -> (k * B, N, D).

    ``mask_token`` is one for all places (1, 1, D), or one for each (1, N, D).
    """
    batch, patches, width = tokens.shape
    views = hidden.shape[0] // batch
    # the k masks of an image lie one after the other
    tokens = ops.broadcast_to(tokens.reshape((batch, 1, patches, width)), (batch, views, patches, width))
    return ops.where(hidden.reshape((-1, patches, 1)), mask_token, tokens.reshape((-1, patches, width)))
