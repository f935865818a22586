"""The depth of masks over the progress of training (Eq. 14)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["depth", "masking_level"]


def depth(
    progress: float,
    schedule: Literal["linear", "sqrt"] | float = "linear",
    depth_range: tuple[float, float] = (0.0, 1.0),
) -> float:
    """Return the masking depth, a fraction of a tree's height in [0, 1], at ``progress`` = t / T of training in [0, 1].

    ``linear`` is Eq. 14, ``sqrt`` deepens earlier, a number is the same depth throughout (the ablations of Tables III
    and IV: 0.2 and 0.8). A schedule goes from the first to the second number of ``depth_range``; (0, 1) in the paper.
    Raises ValueError for anything out of range.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], not {progress}")
    low, high = depth_range
    if not 0 <= low <= high <= 1:
        raise ValueError(f"depth_range must rise within [0, 1], not {depth_range}")
    if schedule == "linear":
        return low + (high - low) * progress
    if schedule == "sqrt":
        return low + (high - low) * math.sqrt(progress)
    if isinstance(schedule, str) or not 0 <= schedule <= 1:
        raise ValueError(f"schedule must be 'linear', 'sqrt' or a depth in [0, 1], not {schedule!r}")
    return float(schedule)


def masking_level(progress: float, height: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return level l = clamp(ceil(progress * height), 1, height) of trees of ``height`` (B,) (Eq. 14).

    Level 1 is random masking. Raises ValueError if ``progress`` is not in [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], not {progress}")
    # Products such as 0.2 * 5 can come out a rounding error above a whole number, and ceil would add a level.
    level = np.ceil(np.round(progress * np.asarray(height, np.float64), 9))
    return np.clip(level, 1, height).astype(np.int32)
