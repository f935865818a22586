"""The speed of a loop and the metrics of its steps, which are read from the device as rarely as possible."""

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
        # with float16 a gradient may overflow at any time: the loss scaler then skips the step and lowers its scale
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
        """Add a step on ``batch``, after which ``done`` steps are done.

        ``metrics`` may still be on the device, and are not read here, because every step would then wait for the
        device. ``problems`` are sentences about values that are already known not to be finite.
        """
        if problems:
            self._problems[done] = problems[0]
        self._images += batch.total
        self._images_here += len(batch.indices)
        self._pending.append((done, metrics))

    def read_values(self, saved: Path | None) -> dict[str, float]:
        """Return the values for a line of the log, and start collecting those of the next line.

        They are the metrics of the last step, but the mean of all losses since the last line, and the epoch, speed,
        waits and memory. All processes call this. Raises NotFiniteError if a loss or a gradient is not finite; the
        message names ``saved``, the last good checkpoint.
        """
        losses = self.check_finite(saved)
        # the loss of one step is too noisy to log, unlike the other metrics
        done, newest = self._pending[-1]
        values = {name: float(value) for name, value in newest.items()}
        if not math.isfinite(values.get("grad_norm", 0.0)):  # of a skipped step (float16); JSON has no infinity
            del values["grad_norm"]
        values["loss"] = sum(losses) / len(losses)
        values["epoch"] = done / self._plan.steps_per_epoch
        values |= self._read_speed()
        self._pending.clear()
        self.restart_clock()
        return values

    def check_finite(self, saved: Path | None) -> list[float]:
        """Return the losses of the steps since the last line, or raise NotFiniteError; all processes call this."""
        losses = []
        for done, metrics in self._pending:
            loss = float(metrics["loss"])  # waits for the device: the only synchronisation of a step
            self._note_problem(done, loss, float(metrics.get("grad_norm", 0.0)))
            losses.append(loss)
        self._raise_problem(saved)
        return losses

    def restart_clock(self) -> None:
        """Restart the measurement of speed, so that whatever came after the last step does not count as training."""
        self._images = 0
        self._images_here = 0
        self._clock.restart()

    def _note_problem(self, done: int, loss: float, grad_norm: float) -> None:
        """Remember the step if its loss or its gradient is not finite."""
        if not math.isfinite(loss):
            self._problems[done] = f"the loss is {loss} at step {done}"
        elif not math.isfinite(grad_norm) and not self._expects_overflow:
            # the weights are no longer finite after this step, even if its loss was
            self._problems[done] = f"the gradient is {grad_norm} at step {done}, whose loss is {loss:.4g}"
        elif done in self._problems:
            self._problems[done] += f" at step {done}, whose loss is {loss:.4g}"

    def _raise_problem(self, saved: Path | None) -> None:
        """Raise NotFiniteError in all processes if a step had a problem in any of them, about the first such step."""
        problems: dict[int, str] = {}
        for problems_of_process in self._processes.gather_values(self._problems):
            problems = problems_of_process | problems  # of one step, the problem of the lowest rank
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
