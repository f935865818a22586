"""Bilinear enlargement of scores to an image's own size, a part of it at a time.

Shapes: scores of C classes on h x w places, an image of H x W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_SCORES", "enlarge_argmax", "find_neighbours", "interpolate_side"]

MOST_SCORES = 1 << 24
"""Scores that are enlarged at once, 64 MiB: those of a large image, whole, would take gigabytes."""
_ROWS = 64
"""Rows that are enlarged at once, at most: more would leave the cache of a processor."""


def enlarge_argmax(scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the class of the highest of scores (C, h, w), once they are resized bilinearly to ``size`` = (H, W)."""
    classes = len(scores)
    labels = np.empty(size, np.uint8)
    left, right, weight_across = find_neighbours(scores.shape[2], size[1])
    upper, lower, weight_down = find_neighbours(scores.shape[1], size[0])
    # bands of as many pixels as fit into the limit; images that are very wide are cut into columns too
    columns_at_once = max(1, min(size[1], MOST_SCORES // classes))
    rows_at_once = max(1, min(_ROWS, MOST_SCORES // (classes * columns_at_once)))
    for first_column in range(0, size[1], columns_at_once):
        columns = slice(first_column, first_column + columns_at_once)
        # of the scores only the columns that these pixels lie between are enlarged downwards
        begin = left[first_column]
        needed = scores[:, :, begin : right[columns][-1] + 1]
        for first_row in range(0, size[0], rows_at_once):
            rows = slice(first_row, first_row + rows_at_once)
            weight = weight_down[rows, None]
            band = needed[:, upper[rows]] * (1 - weight) + needed[:, lower[rows]] * weight
            on_left = band[:, :, left[columns] - begin]
            on_right = band[:, :, right[columns] - begin]
            blend = on_left * (1 - weight_across[columns]) + on_right * weight_across[columns]
            labels[rows, columns] = blend.argmax(axis=0)
    return labels


def find_neighbours(origin: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return for each of ``size`` pixels the two of ``origin`` around its centre, and the weight of the second."""
    # pixels are squares with centres at halves; at the borders the outermost one counts alone
    centre = np.clip((np.arange(size) + 0.5) * (origin / size) - 0.5, 0, origin - 1)
    first = np.floor(centre).astype(np.int64)
    return first, np.minimum(first + 1, origin - 1), (centre - first).astype(np.float32)


def interpolate_side(origin: int, size: int) -> NDArray[np.float32]:
    """Return the weights (size, origin) that resize a side of ``origin`` places bilinearly to ``size`` ones."""
    first, second, weight = find_neighbours(origin, size)
    rows = np.arange(size)
    weights = np.zeros((size, origin), np.float32)
    # at the borders both neighbours are the same place
    np.add.at(weights, (rows, first), 1 - weight)
    np.add.at(weights, (rows, second), weight)
    return weights
