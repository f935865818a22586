"""Schedules of the learning rate and of the decay of the moving average, evaluated at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ehm.config import OptimConfig

__all__ = ["compute_ema_decay", "compute_learning_rate", "ema_decay_at", "learning_rate_at"]

STEP_FACTOR = 0.1
"""The factor by which the schedule ``step`` multiplies the learning rate at each milestone."""


def learning_rate_at(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of ``step`` in a run that is configured by ``optim``."""
    return compute_learning_rate(
        step,
        optim.count_steps(steps_per_epoch),
        optim.count_warmup_steps(steps_per_epoch),
        optim.lr,
        optim.min_lr,
        optim.schedule,
        optim.milestones,
    )


def ema_decay_at(optim: OptimConfig, step: int, steps_per_epoch: int) -> float | None:
    """Return the decay of the moving average in ``step`` of a run that is configured by ``optim``; None without one."""
    if optim.ema_decay is None or isinstance(optim.ema_decay, float):
        return optim.ema_decay
    first, last = optim.ema_decay
    return compute_ema_decay(step, optim.ema_ramp * optim.count_steps(steps_per_epoch), first, last)


def compute_ema_decay(step: int, ramp_steps: float, first: float, last: float) -> float:
    """Return the decay in ``step``: it rises linearly from ``first`` to ``last`` over ``ramp_steps``, and stays there.

    This is the schedule of data2vec (section 3.3), and of I-JEPA, whose ramp is the whole run.
    """
    if step >= ramp_steps:
        return last
    return first + (last - first) * step / ramp_steps


def compute_learning_rate(
    step: int,
    total_steps: int,
    warmup_steps: float,
    peak: float,
    floor: float = 0.0,
    schedule: Literal["cosine", "step", "linear"] = "cosine",
    milestones: Sequence[float] = (0.875,),
) -> float:
    """Return the learning rate of ``step`` in [0, total_steps): a linear warm-up to ``peak``, then a fall.

    The schedule ``cosine`` falls along half a cosine to ``floor``, and ``linear`` along a line. The schedule ``step``
    falls to a tenth at each of ``milestones``, which are shares of the run (SimMIM: 7/8), but not below ``floor``.
    """
    if step < warmup_steps:
        # Step 0 has rate 0, as in MAE's published code, whose fractional epoch begins there too.
        return peak * step / warmup_steps
    if schedule == "step":
        falls = sum(step >= share * total_steps for share in milestones)
        # Before the first fall the floor does not matter, even if it is above the peak.
        return max(floor, peak * STEP_FACTOR**falls) if falls else peak
    elapsed = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        remaining = 1 - elapsed
    else:
        remaining = 0.5 * (1 + math.cos(math.pi * elapsed))
    return floor + (peak - floor) * remaining
