"""From pixels to tokens. Shapes: B images, N patches, D features."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.blocks import linear
from ehm.encoders import VitSpec

__all__ = ["PatchEmbed", "with_class_token"]


class Projection(nn.Cell):
    """The parameters of a convolution whose windows do not overlap, under timm's names."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((width, 3, patch_size, patch_size), np.float32)))
        self.bias = Parameter(Tensor(np.zeros(width, np.float32)))


class PatchEmbed(nn.Cell):
    """Normalised (B, 3, H, W) -> (B, N, D), as one matrix product: on Ascend, convolutions run in HF32."""

    def __init__(self, spec: VitSpec, dtype: Any) -> None:
        super().__init__()
        self.proj = Projection(spec.width, spec.patch_size)
        self.patch_size, self.dtype = spec.patch_size, dtype

    def construct(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D)."""
        size = self.patch_size
        batch, channels, height, width = images.shape
        rows, columns = height // size, width // size
        patches = images.reshape((batch, channels, rows, size, columns, size)).transpose((0, 2, 4, 1, 3, 5))
        weight = self.proj.weight.reshape((self.proj.weight.shape[0], -1))
        return linear(patches.reshape((batch, rows * columns, -1)), weight, self.proj.bias, self.dtype)


def with_class_token(tokens: Tensor, cls_token: Tensor, positions: Tensor) -> Tensor:
    """Put the class token, with its position, before ``tokens``: (B, N, D) -> (B, 1 + N, D)."""
    first = (cls_token + positions[:, :1]).astype(tokens.dtype)
    return ops.cat((ops.broadcast_to(first, (tokens.shape[0], 1, tokens.shape[2])), tokens), 1)
