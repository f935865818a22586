"""Learning-rate schedules: linear warm-up, then a fall, evaluated at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ehm.config import OptimConfig

__all__ = ["learning_rate", "rate"]

STEP_BY = 0.1


def rate(optim: OptimConfig, step: int, epoch: int) -> float:
    """Learning rate of ``step`` in a run as ``optim`` says, with ``epoch`` steps in each epoch."""
    return learning_rate(
        step, optim.total(epoch), optim.warmup(epoch), optim.lr, optim.min_lr, optim.schedule, optim.milestones
    )


def learning_rate(
    step: int,
    total: int,
    warmup: float,
    peak: float,
    floor: float = 0.0,
    schedule: Literal["cosine", "step", "linear"] = "cosine",
    milestones: Sequence[float] = (0.875,),
) -> float:
    """Learning rate of ``step`` in [0, total): 0 to ``peak`` over ``warmup`` steps, then down as ``schedule`` says.

    ``cosine`` is half a cosine to ``floor``, ``linear`` a line to it; ``step`` stays at the peak and falls to a tenth
    of it, but not below ``floor``, at each of ``milestones``, shares of the run (of SimMIM the last eighth). Step 0 of
    a warm-up has rate 0, as in MAE's published code, whose fractional epoch starts there too.
    """
    if step < warmup:
        return peak * step / warmup
    if schedule == "step":
        falls = sum(step >= share * total for share in milestones)
        return peak if not falls else max(floor, peak * STEP_BY**falls)
    gone = (step - warmup) / max(1, total - warmup)
    left = 1 - gone if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))
    return floor + (peak - floor) * left
