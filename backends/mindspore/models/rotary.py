"""Rotary positions of ViTs: the angles as numbers, and queries and keys turned by them.

Shapes: B images, N patches, P tokens before them, L = P + N, h heads of d features.
"""

from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from ehm.config.encoders import Rotary

__all__ = ["compute_rotations", "rotate_patches"]


def compute_rotations(rotary: Rotary, grid: tuple[int, int], width: int) -> NDArray[np.float32]:
    """Compute the sines and then the cosines of a ``grid`` for heads of ``width`` features: (N, 2 * width).

    One half of the pairs of features turns with the row, the other with the column, in frequencies that fall as powers
    of ``rotary.temperature``: of positions in patches (EVA-02), or of periods of positions from -1 to 1 (DINOv3).
    """
    frequencies = 1 / rotary.temperature ** (np.arange(width // 4) / (width / 4))
    positions = []
    for axis, length in enumerate(grid):
        if rotary.kind == "dinov3":
            positions.append(2 * math.pi * (2 * (np.arange(length) + 0.5) / length - 1))
        elif rotary.reference_grid is not None:
            positions.append(np.arange(length) / length * rotary.reference_grid[axis])
        else:
            positions.append(np.arange(length, dtype=np.float64))
    rows, columns = np.meshgrid(*positions, indexing="ij")
    angles = np.concatenate([np.outer(rows.ravel(), frequencies), np.outer(columns.ravel(), frequencies)], axis=1)
    spread = np.concatenate([angles, angles], axis=1) if rotary.halves else angles.repeat(2, axis=1)
    return np.concatenate([np.sin(spread), np.cos(spread)], axis=1).astype(np.float32)


def rotate_patches(heads: Tensor, rotations: Tensor, prefix: int, halves: bool) -> Tensor:
    """Turn the patches' queries or keys (B, h, L, d) by ``rotations`` (N, 2d) or (B, 1, N, 2d); the prefix stays.

    A pair of features lies half a head apart with ``halves``, else side by side.
    """
    width = heads.shape[3]
    patches = heads[:, :, prefix:]
    if halves:
        turned = ops.cat((-patches[..., width // 2 :], patches[..., : width // 2]), -1)
    else:
        pairs = patches.reshape((*patches.shape[:3], width // 2, 2))
        turned = ops.cat((-pairs[..., 1:], pairs[..., :1]), -1).reshape(patches.shape)
    sines = rotations[..., :width]
    cosines = rotations[..., width:]
    rotated = (patches * cosines + turned * sines).astype(heads.dtype)
    if prefix == 0:
        return rotated
    return ops.cat((heads[:, :, :prefix], rotated), 2)
