"""Rotary positions of ViTs: sines and cosines of their angles, and queries and keys turned by them.

Shapes: B images, N patches, P tokens before them, L = P + N, h heads of d features.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from ehm.config.encoders import Rotary
from ehm.models.rotary import compute_angles

__all__ = ["compute_rotations", "rotate_patches"]


def compute_rotations(rotary: Rotary, grid: tuple[int, int], width: int) -> NDArray[np.float32]:
    """Compute the sines and then the cosines of a ``grid`` for heads of ``width`` features: (N, 2 * width).

    The angles are those of :func:`ehm.models.rotary.compute_angles`.
    """
    angles = compute_angles(rotary, grid, width)
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
