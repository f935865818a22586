"""From pixels to patches and tokens, and back to those of interest. Shapes: B images, N patches, D features."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.engine.devices import get_current_facts
from ehm.backends.mindspore.models.blocks import apply_linear

__all__ = [
    "PatchEmbed",
    "Projection",
    "gather_tokens",
    "index_all_patches",
    "patchify",
    "patchify_by_channel",
]


class Projection(nn.Cell):
    """The parameters of a convolution whose windows do not overlap, under timm's names, applied as a matrix product.

    On Ascend, convolutions run in HF32, matrix products do not.
    """

    def __init__(self, outputs: int, inputs: int, side: int, dtype: Any, bias: bool = True) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((outputs, inputs, side, side), np.float32)))
        self.bias = Parameter(Tensor(np.zeros(outputs, np.float32))) if bias else None
        self.dtype = dtype

    def construct(self, windows: Tensor) -> Tensor:
        """(B, N, inputs * side**2) -> (B, N, outputs)."""
        return apply_linear(windows, self.weight.reshape((self.weight.shape[0], -1)), self.bias, self.dtype)


class PatchEmbed(nn.Cell):
    """Normalised (B, C, H, W) -> (B, N, D), under a ``norm`` if there is one."""

    def __init__(
        self,
        patch_size: int,
        width: int,
        dtype: Any,
        bias: bool = True,
        norm: nn.Cell | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.proj = Projection(width, channels, patch_size, dtype, bias)
        self.norm = norm
        self.patch_size = patch_size

    def construct(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D)."""
        return self.embed_patches(patchify_by_channel(images, self.patch_size))

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Embed patches as :func:`patchify_by_channel` cuts them: (B, N, C * patch_size**2) -> (B, N, D)."""
        tokens = self.proj(patches)
        return tokens if self.norm is None else self.norm(tokens)


def patchify_by_channel(images: Tensor, patch_size: int) -> Tensor:
    """Cut (B, C, H, W) into (B, N, C * patch_size**2), values ordered channel, row, column as in convolutions."""
    patches = _split_patches(images, patch_size).transpose((0, 2, 4, 1, 3, 5))
    return patches.reshape((patches.shape[0], patches.shape[1] * patches.shape[2], -1))


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut (B, 3, H, W) into (B, N, P), values ordered row, column, channel as in MAE's published code."""
    patches = _split_patches(images, patch_size).transpose((0, 2, 4, 3, 5, 1))
    return patches.reshape((patches.shape[0], patches.shape[1] * patches.shape[2], -1))


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Take tokens at ``indices``: (B, N, D), (k * B, K) -> (k * B, K, D), k rows an image."""
    batch, count, width = tokens.shape
    first_row = ops.arange(0, batch * count, count).astype(ms.int32).reshape((-1, 1))
    rows = indices.reshape((batch, -1)) + first_row
    table = tokens.reshape((batch * count, width)).astype(_choose_gather_type(tokens.dtype))
    taken = ops.gather(table, rows.reshape((-1,)), 0).astype(tokens.dtype)
    return taken.reshape((indices.shape[0], indices.shape[1], width))


@ops.constexpr
def _choose_gather_type(dtype: Any) -> Any:
    """Return the type in which rows of ``dtype`` are gathered; known when a graph is compiled."""
    names = get_current_facts().gather_dtypes
    return dtype if dtype in [getattr(ms, name) for name in names] else ms.float32


def index_all_patches(restore: Tensor) -> Tensor:
    """Return the indices of all patches (B, N), for each image's places ``restore`` (B, N)."""
    return ops.broadcast_to(ops.arange(restore.shape[1]).astype(ms.int32), restore.shape)


def _split_patches(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, C, rows, patch_size, columns, patch_size)."""
    batch, channels, height, width = images.shape
    rows = height // patch_size
    columns = width // patch_size
    return images.reshape((batch, channels, rows, patch_size, columns, patch_size))
