"""The speed of a loop and the metrics of its steps, read from the device as seldom as can be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar

from ehm.backends.base import Processes
from ehm.data import Batch
from ehm.errors import NotFiniteError
from ehm.training.own_processors import count_own_processors
from ehm.training.plan import RunPlan
from ehm.training.run import Run
from ehm.training.waiting import WaitAdvisor, WaitClock

__all__ = ["RunMeter", "average_over_processes"]

T = TypeVar("T")


class RunMeter:
    """Metrics, speed and waits of the steps of ``run`` since they were last read; all processes make one."""

    def __init__(self, run: Run[Any], plan: RunPlan) -> None:
        self._plan = plan
        self._backend = run.backend
        self._processes = run.processes
        # a gradient beyond float16 is no accident: the step is left out, and the loss scaled down
        self._expects_overflow = run.config.optim.dtype == "float16"
        self._pending: list[tuple[int, Mapping[str, SupportsFloat]]] = []
        self._problems: dict[int, str] = {}
        self._images = 0
        self._images_here = 0
        self._clock = WaitClock(run.backend.is_busy)
        self._advisor = WaitAdvisor(run.config, count_own_processors(run.processes))

    def time_batches(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield from ``batches``, and count the time for which the loop waits for them."""
        return self._clock.time_batches(batches)

    def time_masks(self, pieces: Iterator[T]) -> Iterator[T]:
        """Yield the ``pieces`` of the masks of a step, and count the time for which the device waits for them."""
        return self._clock.time_masks(pieces)

    def add_step(
        self, done: int, batch: Batch, metrics: Mapping[str, SupportsFloat], problems: Sequence[str] = ()
    ) -> None:
        """Note a step on ``batch``, after which ``done`` steps are done.

        ``metrics`` may still lie on the device: to read them here would make every step wait for it. ``problems``
        say what was not finite already, if anything was.
        """
        if problems:
            self._problems[done] = problems[0]
        self._images += batch.total
        self._images_here += len(batch.indices)
        self._pending.append((done, metrics))

    def read_values(self, saved: Path | None) -> dict[str, float]:
        """Return the newest metrics with the mean of all losses, the epoch, speed, waits and memory, and start anew.

        All processes call this. Raises NotFiniteError at a loss or a gradient that is not finite; ``saved`` is the last
        good checkpoint, which it names.
        """
        losses = self.check_finite(saved)
        # the loss is noisy, so that its mean is logged; other metrics are those of the latest step
        done, newest = self._pending[-1]
        values = {name: float(value) for name, value in newest.items()}
        if not math.isfinite(values.get("grad_norm", 0.0)):  # of a step that was left out; JSON has no such number
            del values["grad_norm"]
        values["loss"] = sum(losses) / len(losses)
        values["epoch"] = done / self._plan.steps_per_epoch
        values |= self._read_speed()
        self._pending.clear()
        self.restart_clock()
        return values

    def check_finite(self, saved: Path | None) -> list[float]:
        """Return the losses of the steps that are not read yet, or raise NotFiniteError; all processes call this."""
        losses = []
        for done, metrics in self._pending:
            loss = float(metrics["loss"])  # waits for the device: the only synchronisation of a step
            self._note_problem(done, loss, float(metrics.get("grad_norm", 0.0)))
            losses.append(loss)
        self._raise_problem(saved)
        return losses

    def restart_clock(self) -> None:
        """Count time and images from now on, so that what has just been done does not lower the speed."""
        self._images = 0
        self._images_here = 0
        self._clock.restart()

    def _note_problem(self, done: int, loss: float, grad_norm: float) -> None:
        """Note it if the loss or the gradient of a step is not finite."""
        if not math.isfinite(loss):
            self._problems[done] = f"the loss is {loss} at step {done}"
        elif not math.isfinite(grad_norm) and not self._expects_overflow:
            # the weights would not be finite after this step, nor would a checkpoint of them
            self._problems[done] = f"the gradient is {grad_norm} at step {done}, whose loss is {loss:.4g}"
        elif done in self._problems:
            self._problems[done] += f" at step {done}, whose loss is {loss:.4g}"

    def _raise_problem(self, saved: Path | None) -> None:
        """Raise NotFiniteError at the first step that had a problem in any process, in all of them."""
        problems: dict[int, str] = {}
        for share in self._processes.gather_values(self._problems):
            problems = share | problems
        if problems:
            step = min(problems)
            good = f"the last good checkpoint is {saved}" if saved else "no checkpoint was written yet"
            remedy = "a lower optim.base_lr, optim.clip_grad=1 or optim.dtype=float32 may help"
            raise NotFiniteError(step, f"{problems[step]}; {good}", remedy)

    def _read_speed(self) -> dict[str, float]:
        """Return images a second, waits and memory; all processes call this."""
        seconds = self._clock.seconds
        waits = self._clock.read_shares()
        self._advisor.add_line(len(self._pending), seconds, waits)
        values = {"images_per_second": self._images / seconds}
        if self._processes.size > 1:
            values["images_per_second_here"] = self._images_here / seconds
        shares = {"data_wait": waits.data}
        if waits.masks is not None:
            shares["masks_wait"] = waits.masks
        values |= average_over_processes(shares, self._processes)
        # the fullest device is the one that runs out of memory
        values["device_memory"] = float(max(self._processes.gather_values(self._backend.read_peak_memory())))
        return values


def average_over_processes(figures: Mapping[str, SupportsFloat], processes: Processes) -> dict[str, float]:
    """Return the mean of each figure over all processes, each of which has its own part of a batch; all call this."""
    shares = processes.gather_values({name: float(value) for name, value in figures.items()})
    averages = {}
    for name in figures:
        averages[name] = sum(share[name] for share in shares) / len(shares)
    return averages
