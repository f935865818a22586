"""Windows of a Swin: cut out of a map of tokens and joined again, and what is known of them beforehand.

Shapes: B images, a map of h x w tokens of D features row by row, nW windows of T tokens, N cells of the output grid.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

__all__ = ["cut_windows", "forbid_borders", "join_windows", "mark_owners"]

_FORBIDDEN = -100.0
"""Number that is added to the scores of pairs that must not see each other, as in the published code."""
_NOWHERE = -1
"""Cell of a place of a window that lies beyond the map."""

Pair = tuple[int, int]


def cut_windows(tokens: Tensor, size: Pair, window: Pair, shift: Pair) -> Tensor:
    """Divide a map of ``size`` = (h, w) into windows, shifted and padded: (B, h * w, D) -> (B * nW, T, D)."""
    batch, _, width = tokens.shape
    height, across = _round_up(size, window)
    rows = _roll(_roll(tokens.reshape((batch, *size, width)), 1, shift[0]), 2, shift[1])
    rows = _pad(_pad(rows, 1, height), 2, across)
    cut = rows.reshape((batch, height // window[0], window[0], across // window[1], window[1], width))
    return cut.transpose((0, 1, 3, 2, 4, 5)).reshape((-1, window[0] * window[1], width))


def join_windows(windows: Tensor, size: Pair, window: Pair, shift: Pair) -> Tensor:
    """Put together what :func:`cut_windows` divided: (B * nW, T, D) -> (B, h * w, D)."""
    width = windows.shape[2]
    height, across = _round_up(size, window)
    cut = windows.reshape((-1, height // window[0], across // window[1], window[0], window[1], width))
    rows = cut.transpose((0, 1, 3, 2, 4, 5)).reshape((-1, height, across, width))[:, : size[0], : size[1]]
    rows = _roll(_roll(rows, 1, size[0] - shift[0]), 2, size[1] - shift[1])
    return rows.reshape((-1, size[0] * size[1], width))


def forbid_borders(size: Pair, window: Pair, shift: Pair) -> NDArray[np.float32] | None:
    """Return what is added to the scores of shifted windows, (nW, T, T): a large negative number, or 0.

    Such a window joins tokens of two borders of the map, which must not see each other. None if nothing is shifted.
    """
    if not any(shift):
        return None
    regions = []
    for length, side, moved in zip(_round_up(size, window), window, shift, strict=True):
        places = np.arange(length)
        region = np.zeros(length, np.int64)
        if moved:
            region = (places >= length - side).astype(np.int64) + (places >= length - moved)
        regions.append(region)
    # three regions along either axis
    of_windows = _cut_array(regions[0][:, None] * 3 + regions[1], window)
    differ = of_windows[:, :, None] != of_windows[:, None]
    return np.where(differ, _FORBIDDEN, 0).astype(np.float32)


def mark_owners(size: Pair, grid: Pair, window: Pair, shift: Pair) -> NDArray[np.float32]:
    """Mark the cell of ``grid`` that each place of each window lies in, as zeros and a one: (nW, T, N)."""
    rows = np.arange(size[0]) // (size[0] // grid[0])
    columns = np.arange(size[1]) // (size[1] // grid[1])
    cells = np.roll(rows[:, None] * grid[1] + columns, (-shift[0], -shift[1]), axis=(0, 1))
    height, across = _round_up(size, window)
    padded = np.pad(cells, ((0, height - size[0]), (0, across - size[1])), constant_values=_NOWHERE)
    return (_cut_array(padded, window)[:, :, None] == np.arange(grid[0] * grid[1])).astype(np.float32)


def _cut_array(values: NDArray[np.int64], window: Pair) -> NDArray[np.int64]:
    """Divide (h, w), which windows divide, into windows: (nW, T)."""
    down, across = window
    cut = values.reshape(values.shape[0] // down, down, values.shape[1] // across, across)
    return cut.transpose(0, 2, 1, 3).reshape(-1, down * across)


def _round_up(size: Pair, window: Pair) -> Pair:
    """Return the size of a map that windows divide, which holds one of ``size``."""
    return -(-size[0] // window[0]) * window[0], -(-size[1] // window[1]) * window[1]


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
