"""Supervised training, written once for every task and backend: read it from top to bottom.

A run's folder holds ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` (the newest), ``best/`` (the
one of the highest score) and, at the end, ``metrics.json``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, SupportsFloat, TypeVar

from ehm.backends.base import Backend, TaskLearner
from ehm.config import TaskConfig
from ehm.console import console
from ehm.data.decoding.depth_notes import describe_depths
from ehm.data.subset import Subset
from ehm.storage.checkpoint import newest_checkpoint, open_to_resume
from ehm.training.plan import RunPlan, check_plan, plan_run
from ehm.training.resume import print_changes
from ehm.training.runlog import RunLog
from ehm.training.runs import Metrics, all_broken, describe_run, on, save, say_broken, store, write_json
from ehm.training.schedule import learning_rate_at
from ehm.training.training_data import TrainingData

__all__ = ["Batches", "Measured", "Result", "Task", "fit"]


class Measured(Protocol):
    """What a task found on the images that it is measured on."""

    @property
    def figures(self) -> Mapping[str, float | None]:
        """The figures for the whole, which are logged; ``score`` names the first of them."""
        ...

    @property
    def score(self) -> float:
        """The higher, the better: ``best/`` goes by it."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All figures, as plain values for ``metrics.json``."""
        ...

    def show(self) -> None:
        """Print them for people."""
        ...


R = TypeVar("R", bound=Measured)
R_co = TypeVar("R_co", bound=Measured, covariant=True)


class Batches(Protocol):
    """What a task trains on: a :class:`ehm.data.Loader`, or what numbers its batches as that does."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, at least 1."""
        ...

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """The batches of these global steps; each has ``total``, how many images all processes have in it."""
        ...


class Task(Protocol[R_co]):
    """One kind of supervised training.

    ``kind`` names its checkpoints, ``headline`` says what is trained, ``train`` and ``val`` on which images, of which
    ``data`` is what checkpoints keep, and ``class_counts`` are lines that say how often each class occurs in ``train``.
    """

    kind: str
    headline: str
    train: Subset
    val: Subset
    data: TrainingData
    classes: tuple[str, ...]
    class_counts: tuple[str, ...]

    @property
    def config(self) -> TaskConfig:
        """What the task was made from."""
        ...

    @property
    def loader(self) -> Batches:
        """What it trains on."""
        ...

    @property
    def learner(self) -> TaskLearner:
        """What is trained; the loop saves and loads it."""
        ...

    @property
    def stored(self) -> dict[str, Any]:
        """``config`` as JSON, without what a checkpoint need not keep."""
        ...

    @property
    def broken(self) -> Mapping[str, str]:
        """Files that could not be read, and why."""
        ...

    def step(self, batch: Any, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """One optimiser step on a batch of ``loader``; ``loss`` is among the metrics."""
        ...

    def measure(self) -> R_co:
        """Measure ``learner`` on ``val``; every process calls this."""
        ...

    def close(self) -> None:
        """End what reads images."""
        ...


@dataclass(frozen=True)
class Result(Generic[R]):
    """Where a run's results are. ``report`` measures the end of training, which ``checkpoint`` holds.

    ``best`` is the checkpoint of the highest score: chosen on the images that it is measured on.
    """

    out: Path
    checkpoint: Path
    best: Path
    report: R

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """The report's figures for the whole."""
        return self.report.figures


def fit(task: Task[R], backend: Backend, folder: Path, start: Path | None = None, title: str = "finetune") -> Result[R]:
    """Train ``task`` into ``folder``, from the checkpoint ``start`` if there is one."""
    config, learner, loader, processes = task.config, task.learner, task.loader, backend.processes
    optim, run, leads = config.optim, config.run, processes.rank == 0
    first, best_score, best, result = 0, -1.0, None, None
    if start is not None:
        opened = open_to_resume(start)
        learner.load(opened.state)
        first, best_score = int(opened.metadata["step"]), float(opened.metadata["best_score"])
        best = newest_checkpoint(folder / "best")
    plan = plan_run(optim, run, loader.steps_per_epoch)
    notes = check_plan(plan, optim, run, len(task.train), measures=True, resumed=start is not None)
    images = task.data.to_arrays()
    _announce(task, backend, plan, [*learner.notes, *notes], folder, start)
    if leads:
        store(config, folder)

    metrics, saved = Metrics(), start
    with closing(task), RunLog(folder, plan.last, first, title, run.tensorboard, silent=not leads) as log:
        clock, seen = time.perf_counter(), 0
        for step, batch in enumerate(loader.batches(first, plan.last), start=first):
            lr = learning_rate_at(optim, step, plan.steps_per_epoch)
            metrics.add(step + 1, task.step(batch, step, lr))

            done, seen = step + 1, seen + batch.total
            log.advance(done)
            measure = done % plan.measure_every == 0 or done == plan.last
            due = done % plan.save_every == 0 or done == plan.last
            if measure or due or done % run.log_every == 0:
                values = {**metrics.read(saved), "epoch": done / plan.steps_per_epoch, "lr": lr}
                values["images_per_second"] = seen / (time.perf_counter() - clock)
                if measure:
                    result = task.measure()
                    values |= {name: value for name, value in result.figures.items() if value is not None}
                log.log(done, values)
                clock, seen = time.perf_counter(), 0
            if not (measure or due):
                continue
            better = measure and result is not None and result.score > best_score
            best_score = result.score if result is not None and better else best_score
            said = describe_run(task.kind, task.stored, backend, done, plan.steps_per_epoch) | {
                "classes": list(task.classes),
                "data": task.data.to_json(),
                "image_size": list(learner.image_size),
                "encoder": dict(learner.architecture),
                "inputs": learner.inputs.to_json(),
                "best_score": best_score,
                "metrics": {} if result is None else dict(result.figures),
            }
            if better:
                best = save(folder / "best", learner, said, 1, processes, images)
            if due:
                saved = save(folder / "checkpoints", learner, said, run.keep, processes, images)
        if result is None:  # resumed at its end
            result = task.measure()
    assert saved is not None
    best = best or saved
    result.show()
    say_broken(all_broken(task.broken, processes))
    if leads:
        _write_metrics(folder, task.val, result, saved, best, best_score)
    return Result(folder, saved, best, result)


def _write_metrics(folder: Path, val: Subset, result: Measured, saved: Path, best: Path, best_score: float) -> None:
    name = next(iter(result.figures))
    chosen = {"checkpoint": str(best), name: best_score}
    values = {"checkpoint": str(saved), "part": val.title, **result.to_json(), "best": chosen}
    path = write_json(folder / "metrics.json", values)
    console.print(f"Checkpoint: {saved} (the highest {name.replace('_', ' ')}, {best_score:.1%}: {best})")
    console.print(f"Report: {path}")


def _announce(
    task: Task[Any], backend: Backend, plan: RunPlan, notes: Sequence[str], folder: Path, start: Path | None
) -> None:
    config = task.config
    optim, (height, width) = config.optim, task.learner.image_size
    console.print(f"{task.headline} at {height} x {width} pixels, {len(task.classes):,} classes")
    console.print(
        f"  on {config.data.source}: {len(task.train):,} images ({task.train.title}), measured on {len(task.val):,} "
        f"({task.val.title}); {plan.describe(optim)}, batch {optim.batch_size}, {config.optimizer}, "
        f"learning rate {optim.lr:.2e}; {on(backend)}"
    )
    for note in (*task.train.source.notes, *describe_depths(task.train.source), *task.class_counts):
        console.print(f"  {note}")
    for note in notes:
        console.print(f"  {note}")
    console.print(f"  into {folder}" + (f", continuing {start.name}" if start else ""))
    if start is not None:
        print_changes(config, start, backend)
