"""Repeat images by a weight: the same ones in every epoch and run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["repeat_by_weight"]


def repeat_by_weight(indices: NDArray[np.int64], weight: float, seed: list[int]) -> NDArray[np.int64]:
    """Return ``indices`` (n,) as often as ``weight`` says.

    Of a weight of 2.3 all occur twice, and three tenths of them, drawn once from ``seed``, a third time.
    """
    complete = int(weight)
    rest = round((weight - complete) * len(indices))
    drawn = np.random.default_rng(seed).choice(indices, rest, replace=False)
    return np.concatenate([np.tile(indices, complete), np.sort(drawn)])
