"""The learning-rate schedule of MAE: linear warm-up, then half a cosine, evaluated at every step."""

from __future__ import annotations

import math

__all__ = ["warmup_cosine"]


def warmup_cosine(step: int, total: int, warmup: float, peak: float, floor: float = 0.0) -> float:
    """Learning rate of ``step`` in [0, total): 0 to ``peak`` over ``warmup`` steps, then down to ``floor``.

    Step 0 of a warm-up has rate 0, as in the published code, whose fractional epoch starts there too.
    """
    if step < warmup:
        return peak * step / warmup
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
