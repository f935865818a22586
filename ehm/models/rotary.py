"""The angles of rotary positions as numbers, which every framework and every graph turns queries and keys by.

Shapes: N patches, d features of a head.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import Rotary

__all__ = ["compute_angles"]


def compute_angles(rotary: Rotary, grid: tuple[int, int], width: int) -> NDArray[np.float64]:
    """Compute the angle of each pair of features at each patch of a ``grid``, for heads of ``width``: (N, d / 2).

    One half of the pairs turns with the row, the other with the column, in frequencies that fall as powers of
    ``rotary.temperature``: of positions in patches (EVA-02), or of periods of positions from -1 to 1 (DINOv3).
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
    return np.concatenate([np.outer(rows.ravel(), frequencies), np.outer(columns.ravel(), frequencies)], axis=1)
