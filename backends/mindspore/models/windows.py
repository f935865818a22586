"""Windows of a Swin: cut out of a map of tokens and joined again, and what is known of them beforehand.

Shapes: B images, a map of h x w tokens of D features row by row, nW windows of T tokens, N cells of the output grid.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from ehm.models.windows import Pair, index_windows, round_up

__all__ = ["cut_windows", "join_windows", "mark_owners"]

_NOWHERE = -1
"""Cell of a place of a window that lies beyond the map."""


def cut_windows(tokens: Tensor, size: Pair, window: Pair, shift: Pair) -> Tensor:
    """Divide a map of ``size`` = (h, w) into windows, shifted and padded: (B, h * w, D) -> (B * nW, T, D)."""
    batch, _, width = tokens.shape
    height, across = round_up(size, window)
    rows = _roll(_roll(tokens.reshape((batch, *size, width)), 1, shift[0]), 2, shift[1])
    rows = _pad(_pad(rows, 1, height), 2, across)
    cut = rows.reshape((batch, height // window[0], window[0], across // window[1], window[1], width))
    return cut.transpose((0, 1, 3, 2, 4, 5)).reshape((-1, window[0] * window[1], width))


def join_windows(windows: Tensor, size: Pair, window: Pair, shift: Pair) -> Tensor:
    """Put together what :func:`cut_windows` divided: (B * nW, T, D) -> (B, h * w, D)."""
    width = windows.shape[2]
    height, across = round_up(size, window)
    cut = windows.reshape((-1, height // window[0], across // window[1], window[0], window[1], width))
    rows = cut.transpose((0, 1, 3, 2, 4, 5)).reshape((-1, height, across, width))[:, : size[0], : size[1]]
    rows = _roll(_roll(rows, 1, size[0] - shift[0]), 2, size[1] - shift[1])
    return rows.reshape((-1, size[0] * size[1], width))


def mark_owners(size: Pair, grid: Pair, window: Pair, shift: Pair) -> NDArray[np.float32]:
    """Mark the cell of ``grid`` that each place of each window lies in, as zeros and a one: (nW, T, N)."""
    rows = np.arange(size[0]) // (size[0] // grid[0])
    columns = np.arange(size[1]) // (size[1] // grid[1])
    cells = rows[:, None] * grid[1] + columns
    # a place beyond the map lies in no cell
    owners = np.append(cells.ravel(), _NOWHERE)[index_windows(size, window, shift)]
    return (owners[:, :, None] == np.arange(grid[0] * grid[1])).astype(np.float32)


def _roll(values: Tensor, axis: int, shift: int) -> Tensor:
    """Move a map (B, h, w, D) along ``axis``, 1 or 2, so that it begins with its place ``shift``."""
    if shift % values.shape[axis] == 0:
        return values
    if axis == 1:
        return ops.cat((values[:, shift:], values[:, :shift]), 1)
    return ops.cat((values[:, :, shift:], values[:, :, :shift]), 2)


def _pad(values: Tensor, axis: int, length: int) -> Tensor:
    """Lengthen a map (B, h, w, D) along ``axis`` with zeros to ``length``, as timm does."""
    shape = list(values.shape)
    shape[axis] = length - shape[axis]
    if shape[axis] == 0:
        return values
    return ops.cat((values, ops.zeros(tuple(shape), values.dtype)), axis)
