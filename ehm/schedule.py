"""The learning-rate schedules of MAE and SimMIM: linear warm-up, then a fall, evaluated at every step."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["learning_rate"]

STEP_AT, STEP_BY = 7 / 8, 0.1  # SimMIM: at epoch 700 of 800


def learning_rate(
    step: int,
    total: int,
    warmup: float,
    peak: float,
    floor: float = 0.0,
    schedule: Literal["cosine", "step"] = "cosine",
) -> float:
    """Learning rate of ``step`` in [0, total): 0 to ``peak`` over ``warmup`` steps, then down as ``schedule`` says.

    ``cosine`` is half a cosine to ``floor``; ``step`` stays at the peak and falls to a tenth of it, but not below
    ``floor``, for the last eighth. Step 0 of a warm-up has rate 0, as in MAE's published code, whose fractional epoch
    starts there too.
    """
    if step < warmup:
        return peak * step / warmup
    if schedule == "step":
        return peak if step < STEP_AT * total else max(floor, peak * STEP_BY)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
