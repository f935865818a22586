"""The windows of a Swin as arrays: which tokens each holds, and which of them must not see each other.

Shapes: a map of h x w tokens row by row, nW windows of T places.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import SwinSpec

__all__ = ["Pair", "find_shift", "forbid_borders", "index_windows", "round_up"]

_FORBIDDEN = -100.0
"""Number that is added to the scores of pairs that must not see each other, as in the published code."""

Pair = tuple[int, int]
"""A number down and one across."""


def find_shift(spec: SwinSpec, stage: int, block: int) -> Pair:
    """Return by how many tokens the windows of a ``block`` of ``stage`` are moved, down and across.

    Every second block moves them by half of their sides, but not along an axis that one window spans.
    """
    sides = []
    for length, side in zip(spec.measure_map(stage), spec.windows[stage], strict=True):
        sides.append(side // 2 if block % 2 and length > side else 0)
    return sides[0], sides[1]


def index_windows(size: Pair, window: Pair, shift: Pair) -> NDArray[np.int64]:
    """Return the token at each place of each window of a map of ``size`` = (h, w): (nW, T).

    The map is rolled by ``shift``; a place beyond it, of which there are some if windows do not divide it, has h * w.
    """
    tokens = np.roll(np.arange(size[0] * size[1]).reshape(size), (-shift[0], -shift[1]), axis=(0, 1))
    height, width = round_up(size, window)
    padding = ((0, height - size[0]), (0, width - size[1]))
    return _cut_windows(np.pad(tokens, padding, constant_values=size[0] * size[1]), window)


def forbid_borders(size: Pair, window: Pair, shift: Pair) -> NDArray[np.float32] | None:
    """Return what is added to the scores of shifted windows, (nW, T, T): a large negative number, or 0.

    Such a window joins tokens of two borders of the map, which must not see each other. None if nothing is shifted.
    """
    if not any(shift):
        return None
    regions = []
    for length, side, moved in zip(round_up(size, window), window, shift, strict=True):
        places = np.arange(length)
        region = np.zeros(length, np.int64)
        if moved:
            region = (places >= length - side).astype(np.int64) + (places >= length - moved)
        regions.append(region)
    # three regions along either axis
    of_windows = _cut_windows(regions[0][:, None] * 3 + regions[1], window)
    differ = of_windows[:, :, None] != of_windows[:, None]
    return np.where(differ, _FORBIDDEN, 0).astype(np.float32)


def _cut_windows(values: NDArray[np.int64], window: Pair) -> NDArray[np.int64]:
    """Divide (h, w), which windows divide, into windows: (nW, T)."""
    down, across = window
    cut = values.reshape(values.shape[0] // down, down, values.shape[1] // across, across)
    return cut.transpose(0, 2, 1, 3).reshape(-1, down * across)


def round_up(size: Pair, window: Pair) -> Pair:
    """Return the size of a map that windows divide, which holds one of ``size``."""
    return -(-size[0] // window[0]) * window[0], -(-size[1] // window[1]) * window[1]
