"""The steps at which a run is measured: as often as is asked for, or as often as costs little."""

from __future__ import annotations

import math
import time

from ehm.config import TrainConfig
from ehm.training.plan import RunPlan

__all__ = ["SHARE_OF_TIME", "WatchPlan"]

SHARE_OF_TIME = 0.03
"""Share of the time that measuring may take if nobody has said how often to measure."""
_FIRST_SHARE = 0.05
"""Share of the run after which it is measured first, unless its first epoch is shorter."""


class WatchPlan:
    """The steps after which ``images`` images are passed through the encoder to measure it; the last is one of them.

    With ``watch.every`` null the first measurement decides: the interval is such that measuring takes less than 3 % of
    the time. If even the first would cost more than that of the whole run, there is none before the end. ``interval``
    is what the run had decided before it was resumed.
    """

    def __init__(self, config: TrainConfig, plan: RunPlan, images: int, interval: int | None = None) -> None:
        self._plan = plan
        self._every = config.watch.every
        self.interval = interval
        if self._every:
            self.interval = max(1, round(self._every * plan.steps_per_epoch))
        # a whole image in a forward pass costs no more than a masked one in a step
        self._is_affordable = images <= SHARE_OF_TIME * plan.total * config.optim.batch_size
        self._first = max(2, min(plan.steps_per_epoch, round(_FIRST_SHARE * plan.total)))
        self._clock: tuple[int, float] | None = None
        self._is_cost_said = False

    def is_due(self, done: int) -> bool:
        """Return whether the run is measured once ``done`` steps are done; called after every step."""
        if self._clock is None:
            # from the end of the first step on, which takes longer than others
            self._clock = (done, time.perf_counter())
        if done == self._plan.last:
            return True
        if self.interval is not None:
            return done % self.interval == 0
        return self._is_affordable and done % self._first == 0

    def time_steps(self, done: int) -> float | None:
        """Return the seconds that a step has taken until now, with ``done`` steps done; None if nobody can know yet."""
        if self._clock is None or done == self._clock[0]:
            return None
        first, started = self._clock
        return (time.perf_counter() - started) / (done - first)

    def add_cost(self, done: int, cost: float) -> str | None:
        """Decide on the interval if that is still to be done: a measurement takes as long as ``cost`` steps.

        Returns a sentence about it the first time, after ``done`` steps.
        """
        if self._is_cost_said:
            return None
        self._is_cost_said = True
        was_open = self.interval is None
        if self.interval is None:
            self.interval = self._round_up(cost / SHARE_OF_TIME)
        said = f"Step {done:,}: measuring the features took as long as {cost:.2g} steps"
        # nothing but the end is left to measure
        if done + self.interval > self._plan.last:
            return f"{said}; the next measurement is that of the end" if done < self._plan.last else None
        share = cost / (self.interval + cost)
        how_often = f"every {self._name(self.interval)} it takes {share:.1%} of the time"
        if was_open:
            return f"{said}; {how_often}, and so it is done (watch.every sets another interval)"
        return f"{said}; {how_often}"

    def describe(self) -> str:
        """Return when the run is measured, in words."""
        if self.interval is not None:
            return f"every {self._name(self.interval)} and at the end"
        if self._is_affordable:
            first = self._name(self._first)
            return f"first after {first}, then as often as costs less than {SHARE_OF_TIME:.0%} of the time"
        return (
            f"at the end alone, as more would cost over {SHARE_OF_TIME:.0%} of the time (watch.every=1 measures every "
            "epoch all the same)"
        )

    def _round_up(self, steps: float) -> int:
        """Return the next multiple of an epoch, or for less than an epoch of the steps from log line to log line."""
        unit = self._plan.steps_per_epoch
        if steps < unit:
            # lines of the log then hold the figures of the features beside the others
            unit = min(unit, self._plan.log_every)
        return max(1, math.ceil(steps / unit)) * unit

    def _name(self, steps: int) -> str:
        """Return a number of steps in words: in epochs if it is a whole number of them."""
        epochs, rest = divmod(steps, self._plan.steps_per_epoch)
        if rest or not epochs:
            return "step" if steps == 1 else f"{steps:,} steps"
        return "epoch" if epochs == 1 else f"{epochs:,} epochs"
