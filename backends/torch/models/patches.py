"""From pixels to patches and tokens, and back to those of interest. Shapes: B images, N patches, D features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

__all__ = ["embed_patches", "gather_tokens", "index_all_patches", "patchify", "patchify_by_channel"]


def embed_patches(images: Tensor, projection: Any, patch_size: int) -> Tensor:
    """Apply the convolution ``projection`` to patches: normalised (B, 3, H, W) -> (B, N, D).

    Its windows do not overlap, so it is one matrix product: its gradient takes a tenth of the time on a CPU, and on an
    NPU it escapes the HF32 of convolutions.
    """
    return linear(patchify_by_channel(images, patch_size), projection.weight.flatten(1), projection.bias)


def patchify_by_channel(images: Tensor, patch_size: int) -> Tensor:
    """Cut (B, C, H, W) into (B, N, C * patch_size**2), values ordered channel, row, column as in convolutions."""
    return _split_patches(images, patch_size).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut (B, 3, H, W) into (B, N, P), values ordered row, column, channel as in MAE's published code."""
    return _split_patches(images, patch_size).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Take tokens at ``indices``: (B, N, D), (B, K) -> (B, K, D); or (k * B, K) -> (k * B, K, D), k rows an image."""
    rows_of_image = indices.reshape(tokens.shape[0], -1)
    first_row = tokens.shape[1] * torch.arange(len(rows_of_image), device=indices.device)[:, None]
    # An embedding, as torch-npu documents neither gather nor the gradient of index_select for bfloat16 on the 910B.
    return embedding(rows_of_image + first_row, tokens.flatten(0, 1)).view(*indices.shape, -1)


def index_all_patches(restore: Tensor) -> Tensor:
    """Return the indices of all patches (B, N), for each image's places ``restore`` (B, N)."""
    return torch.arange(restore.shape[1], device=restore.device).expand_as(restore)


def _split_patches(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, C, rows, patch_size, columns, patch_size)."""
    return images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
