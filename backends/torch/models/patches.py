"""From pixels to patches and tokens, and back to those of interest. Shapes: B images, N patches, D features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

__all__ = ["embed", "patchify", "pixels_of", "take"]


def embed(images: Tensor, projection: Any, patch_size: int) -> Tensor:
    """Normalised (B, 3, H, W) -> (B, N, D), what the convolution ``projection`` makes of patches.

    Its windows do not overlap, so it is one matrix product: its gradient takes a tenth of the time on a CPU, and on an
    NPU it escapes the HF32 of convolutions.
    """
    return linear(pixels_of(images, patch_size), projection.weight.flatten(1), projection.bias)


def pixels_of(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C * patch_size**2), values of a patch ordered channel, row, column as in convolutions."""
    return _patches(images, patch_size).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, 3, H, W) -> (B, N, P), values of a patch ordered row, column, channel as in MAE's published code."""
    return _patches(images, patch_size).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens at ``indices``: (B, N, D), (B, K) -> (B, K, D); or (k * B, K) -> (k * B, K, D), k rows an image.

    As an embedding: torch-npu documents neither gather nor the gradient of index_select for bfloat16 on the 910B.
    """
    flat = indices.reshape(tokens.shape[0], -1)
    rows = flat + tokens.shape[1] * torch.arange(len(flat), device=flat.device)[:, None]
    return embedding(rows, tokens.flatten(0, 1)).view(*indices.shape, -1)


def _patches(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, C, rows, patch_size, columns, patch_size)."""
    return images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
