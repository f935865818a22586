"""The steps after which a run is measured: at a set interval, or as often as takes little of the time."""

from __future__ import annotations

import math
import time

from ehm.config import TrainConfig
from ehm.training.plan import RunPlan

__all__ = ["SHARE_OF_TIME", "WatchPlan"]

SHARE_OF_TIME = 0.03
"""Share of the time that measurements may take if ``watch.every`` is not set."""
_FIRST_SHARE = 0.05
"""Share of the run before the first measurement, unless an epoch is shorter."""


class WatchPlan:
    """Decides after which steps a run is measured; the last step is always one of them.

    ``images`` is the number of images that a measurement passes through the encoder. If ``watch.every`` is null, the
    time of the first measurement decides: the interval is chosen so that measurements take less than 3 % of the time.
    If a single measurement would take more than that of the whole run, there is none before the end. ``interval`` is
    the one that a resumed run has already chosen.
    """

    def __init__(self, config: TrainConfig, plan: RunPlan, images: int, interval: int | None = None) -> None:
        self._plan = plan
        self._every = config.watch.every
        self.interval = interval
        if self._every:
            self.interval = max(1, round(self._every * plan.steps_per_epoch))
        # estimated before anything is timed: an image costs at most as much to measure as a masked one costs in a step
        self._is_affordable = images <= SHARE_OF_TIME * plan.total * config.optim.batch_size
        self._first = max(2, min(plan.steps_per_epoch, round(_FIRST_SHARE * plan.total)))
        self._clock: tuple[int, float] | None = None
        self._is_cost_reported = False

    def is_due(self, done: int) -> bool:
        """Return whether the run is measured once ``done`` steps are done; called after every step."""
        if self._clock is None:
            # started after the first step, which takes longer than the others
            self._clock = (done, time.perf_counter())
        if done == self._plan.last:
            return True
        if self.interval is not None:
            return done % self.interval == 0
        return self._is_affordable and done % self._first == 0

    def time_steps(self, done: int) -> float | None:
        """Return the mean seconds of a step so far, with ``done`` steps done; None if too few have been timed."""
        if self._clock is None or done == self._clock[0]:
            return None
        first, started = self._clock
        return (time.perf_counter() - started) / (done - first)

    def add_cost(self, done: int, cost: float) -> str | None:
        """Choose the interval unless there is one: a measurement takes as long as ``cost`` steps.

        Returns a sentence on the cost for the first measurement, which was made after ``done`` steps, then None.
        """
        if self._is_cost_reported:
            return None
        self._is_cost_reported = True
        is_chosen_here = self.interval is None
        if self.interval is None:
            self.interval = self._round_up(cost / SHARE_OF_TIME)
        sentence = f"Step {done:,}: measuring the features took as long as {cost:.2g} steps"
        if done + self.interval > self._plan.last:
            return f"{sentence}; the next measurement is that of the end" if done < self._plan.last else None
        share = cost / (self.interval + cost)
        sentence += f"; every {self._describe_steps(self.interval)} it takes {share:.1%} of the time"
        if is_chosen_here:
            sentence += ", and this is the interval from now on (watch.every sets another one)"
        return sentence

    def describe(self) -> str:
        """Return the moments of measurements in words."""
        if self.interval is not None:
            return f"every {self._describe_steps(self.interval)} and at the end"
        if self._is_affordable:
            first = self._describe_steps(self._first)
            return f"first after {first}, then as often as costs less than {SHARE_OF_TIME:.0%} of the time"
        return (
            f"at the end alone, as more would cost over {SHARE_OF_TIME:.0%} of the time (watch.every=1 measures every "
            "epoch all the same)"
        )

    def _round_up(self, steps: float) -> int:
        """Round ``steps`` up to whole epochs, or if they are less than one epoch, to the steps of lines of the log."""
        unit = self._plan.steps_per_epoch
        if steps < unit:
            # the figures of the features are then on the same lines as the other values
            unit = min(unit, self._plan.log_every)
        return max(1, math.ceil(steps / unit)) * unit

    def _describe_steps(self, steps: int) -> str:
        """Return a number of steps in words: in epochs if it is a whole number of them."""
        epochs, rest = divmod(steps, self._plan.steps_per_epoch)
        if rest or not epochs:
            return "step" if steps == 1 else f"{steps:,} steps"
        return "epoch" if epochs == 1 else f"{epochs:,} epochs"
