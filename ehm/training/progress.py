"""The speed of a loop and the metrics of its steps, read from the device as seldom as can be."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

from ehm.backends.base import Processes
from ehm.errors import TrainingError
from ehm.training.plan import RunPlan

__all__ = ["RunMeter", "average_over_processes"]


class RunMeter:
    """Metrics and speed of the steps since they were last read."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._pending: list[tuple[int, Mapping[str, SupportsFloat]]] = []
        self._images = 0
        self._clock = time.perf_counter()

    def add_step(self, done: int, images: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Note a step on ``images`` images, after which ``done`` steps are done.

        ``metrics`` may still lie on the device: to read them here would make every step wait for it.
        """
        self._images += images
        self._pending.append((done, metrics))

    def read_values(self, saved: Path | None) -> dict[str, float]:
        """Return the newest metrics with the mean of all losses, the epoch and the images per second, and start anew.

        Raises TrainingError at a loss that is not finite; ``saved`` is the last good checkpoint, which it names.
        """
        losses = []
        for step, metrics in self._pending:
            loss = float(metrics["loss"])  # waits for the device: the only synchronisation of a step
            if not math.isfinite(loss):
                good = f"the last good checkpoint is {saved}" if saved else "no checkpoint was written yet"
                raise TrainingError(
                    f"the loss is {loss} at step {step}; {good}; "
                    "a lower optim.base_lr, optim.clip_grad=1 or optim.dtype=float32 may help"
                )
            losses.append(loss)
        # the loss is noisy, so that its mean is logged; other metrics are those of the latest step
        done, newest = self._pending[-1]
        values = {name: float(value) for name, value in newest.items()}
        values["loss"] = sum(losses) / len(losses)
        values["epoch"] = done / self._plan.steps_per_epoch
        values["images_per_second"] = self._images / (time.perf_counter() - self._clock)
        self._pending.clear()
        self.restart_clock()
        return values

    def restart_clock(self) -> None:
        """Count time and images from now on, so that what has just been done does not lower the speed."""
        self._images = 0
        self._clock = time.perf_counter()


def average_over_processes(figures: Mapping[str, SupportsFloat], processes: Processes) -> dict[str, float]:
    """Return the mean of each figure over all processes, each of which has its own part of a batch; all call this."""
    shares = processes.gather_values({name: float(value) for name, value in figures.items()})
    averages = {}
    for name in figures:
        averages[name] = sum(share[name] for share in shares) / len(shares)
    return averages
