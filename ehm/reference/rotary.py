"""Rotary positions in NumPy and float64: pairs of features are turned by angles that grow with the position.

Shapes: N patches, d features of a head.
"""

from __future__ import annotations

import numpy as np

from ehm.config.encoders import Rotary
from ehm.reference.layers import Floats

__all__ = ["compute_angles", "rotate_features"]


def compute_angles(rotary: Rotary, grid: tuple[int, int], features: int) -> Floats:
    """Compute the angle of each pair of features at each patch: (N, d / 2), first by the row, then by the column.

    EVA-02 counts patches and has the frequencies of language models. DINOv3 has positions between -1 and 1, in the
    middle of patches.
    """
    axes = []
    exponents = np.arange(features // 4) / (features // 4)
    for length, reference in zip(grid, rotary.reference_grid or grid, strict=True):
        if rotary.kind == "eva":
            positions = np.arange(length) * (reference / length)
        else:
            positions = 2 * np.pi * (2 * (np.arange(length) + 0.5) / length - 1)
        axes.append(np.outer(positions, rotary.temperature**-exponents))
    rows, columns = axes
    by_row = np.repeat(rows, grid[1], axis=0)
    by_column = np.tile(columns, (grid[0], 1))
    return np.concatenate([by_row, by_column], axis=1)


def rotate_features(heads: Floats, angles: Floats, halves: bool) -> Floats:
    """Turn the pairs of (..., N, d) by ``angles`` (..., N, d / 2); pairs lie half a head apart, or side by side."""
    half = heads.shape[-1] // 2
    if halves:
        first, second = heads[..., :half], heads[..., half:]
    else:
        first, second = heads[..., ::2], heads[..., 1::2]
    turned_first = first * np.cos(angles) - second * np.sin(angles)
    turned_second = second * np.cos(angles) + first * np.sin(angles)
    if halves:
        return np.concatenate([turned_first, turned_second], axis=-1)
    return np.stack([turned_first, turned_second], axis=-1).reshape(heads.shape)
