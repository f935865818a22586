"""Supervised training, written once for all tasks and backends: ``train_task`` is the loop, from top to bottom.

A run's folder has these files:

config.yaml, metrics.jsonl, tensorboard/
checkpoints/                 the newest checkpoints
best/                        the checkpoint with the highest score

and at the end of the run

metrics.json, report.html
predictions.csv              of a classifier
encoder/, encoder_hf/        the encoder, for timm and transformers to load by name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ehm.config import TaskConfig
from ehm.config.inputs import describe_inputs
from ehm.console import console
from ehm.data.subset import Subset
from ehm.models.opening import take_weights
from ehm.report.run_card import render_run_card
from ehm.report.write import write_final_report
from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint
from ehm.storage.writing import write_json
from ehm.training.encoder_folders import write_run_folders
from ehm.training.patience import Patience
from ehm.training.plan import RunPlan, check_plan, plan_run
from ehm.training.progress import RunMeter
from ehm.training.run import Run, print_unreadable
from ehm.training.schedule import ema_decay_at, learning_rate_at

if TYPE_CHECKING:
    from ehm.tasks.base import Task

__all__ = ["Report", "TaskResult", "train_task"]


class Report(Protocol):
    """The figures that a model reaches on the images that it is measured on."""

    @property
    def figures(self) -> Mapping[str, float | None]:
        """The figures for all images together, which are logged; the first of them is the ``score``."""
        ...

    @property
    def score(self) -> float:
        """The figure that the best checkpoint is chosen by: the higher the better."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return all figures, as plain values for ``metrics.json``."""
        ...

    def show(self) -> None:
        """Print the figures for people."""
        ...


R = TypeVar("R", bound=Report)


@dataclass(frozen=True)
class TaskResult(Generic[R]):
    """The results of a run: its folder, the last ``checkpoint``, and the ``report`` on that.

    ``best`` is the checkpoint with the highest score. Its score is optimistic, because it was chosen on the same images
    that it was measured on.
    """

    out: Path
    checkpoint: Path
    best: Path
    report: R

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """The report's figures for all images together."""
        return self.report.figures

    def _repr_html_(self) -> str | None:
        return render_run_card(self.out)


def train_task(task: Task[Any, R], run: Run[Any], title: str) -> TaskResult[R]:
    """Train ``task`` in ``run``; ``title`` is the text beside the progress bar."""
    config: TaskConfig = run.config
    optim = config.optim
    learner = task.learner
    best_score = -1.0  # below every score, so that the first measurement is the best so far
    best = None
    if run.start is not None:
        learner.load(run.start.take_state())
        best_score = float(run.start.metadata["best_score"])
        best = newest_checkpoint(run.folder / "best")
    plan = plan_run(optim, config.run, task.loader.steps_per_epoch)
    warnings = check_plan(plan, optim, config.run, len(task.train), measures=True, resumed=run.start is not None)
    patience = Patience(config.patience, run.start)
    if patience.is_exhausted:  # the checkpoint is that of a run that stopped early, and is therefore complete
        plan = replace(plan, last=run.first_step)
    prepared = task.prepare_folder(run.folder)
    notes = [*task.class_counts, *learner.notes, describe_inputs(learner.inputs), *prepared, *warnings]
    _print_start(task, run, plan, notes)
    run.write_config()

    seen_images = task.data.to_arrays()  # the same in all checkpoints of a run
    saved = run.start_path
    report: R | None = None
    meter = RunMeter(run, plan)
    with closing(task), run.open_log(plan.last, run.first_step, title) as log:
        batches = meter.time_batches(task.loader.batches(run.first_step, plan.last))
        for step, batch in enumerate(batches, start=run.first_step):
            lr = learning_rate_at(optim, step, plan.steps_per_epoch)
            metrics = task.train_step(batch, step, lr)
            decay = ema_decay_at(optim, step, plan.steps_per_epoch)
            if decay is not None:
                learner.update_average(decay)

            done = step + 1
            meter.add_step(done, batch, {**metrics, "lr": lr})
            log.advance(done)
            is_save_due = plan.is_save_due(done)
            is_measure_due = plan.is_measure_due(done)
            if not (is_save_due or is_measure_due or plan.is_log_due(done)):
                continue
            values = meter.read_values(saved)
            is_best = False
            if is_measure_due:
                report = task.measure()
                values |= {name: value for name, value in report.figures.items() if value is not None}
                is_best = report.score > best_score
                best_score = max(best_score, report.score)
                patience.count_measurement(is_best)
                is_save_due |= patience.is_exhausted
                meter.restart_clock()  # the speed of training does not include measurements
            log.log(done, values)

            # the best one has a folder of its own, where newer checkpoints do not replace it
            if is_save_due or is_best:
                metadata = run.make_metadata(task.kind, done, plan, task.config_to_keep)
                metadata |= _describe_task(task, report, best_score) | patience.to_json()
                if is_best:
                    best = run.save_checkpoint(learner, metadata, images=seen_images, subfolder="best", keep=1)
                if is_save_due:
                    saved = run.save_checkpoint(learner, metadata, images=seen_images)
            if patience.is_exhausted:
                console.print(patience.describe(done, plan.last))
                break
        if report is None:  # the run was resumed at its end
            report = task.measure()
    assert saved is not None  # a run has at least one step, and its last one is saved
    best = best or saved
    report.show()
    print_unreadable(task.unreadable, run.processes)
    if run.is_main_process:
        _write_metrics(run.folder, task.val, report, saved, best, best_score)
        task.evaluation.write_predictions(run.folder)
        write_run_folders(run, take_weights(open_checkpoint(saved)), saved)
        write_final_report(run.folder, task.evaluation.draw)
    return TaskResult(run.folder, saved, best, report)


def _describe_task(task: Task[Any, Any], report: Report | None, best_score: float) -> dict[str, Any]:
    """Return the metadata that the checkpoints of tasks have in addition to those of every run."""
    return {
        "classes": list(task.classes),
        "data": task.data.to_json(),
        "image_size": list(task.learner.image_size),
        "encoder": dict(task.learner.architecture),
        "inputs": task.learner.inputs.to_json(),
        "best_score": best_score,
        "metrics": {} if report is None else dict(report.figures),
        **task.more_metadata,
    }


def _write_metrics(folder: Path, val: Subset[Any], report: Report, saved: Path, best: Path, best_score: float) -> None:
    score_name = next(iter(report.figures))
    chosen = {"checkpoint": str(best), score_name: best_score}
    values = {"checkpoint": str(saved), "part": val.title, **report.to_json(), "best": chosen}
    path = write_json(folder / "metrics.json", values)
    console.print(f"Checkpoint: {saved} (the highest {score_name.replace('_', ' ')}, {best_score:.1%}: {best})")
    console.print(f"Figures: {path}")


def _print_start(task: Task[Any, Any], run: Run[Any], plan: RunPlan, notes: Sequence[str]) -> None:
    config: TaskConfig = run.config
    optim = config.optim
    height, width = task.learner.image_size
    classes = f", {len(task.classes):,} classes" if task.classes else ""
    console.print(f"{task.headline} at {height} x {width} pixels{classes}")
    console.print(
        f"  on {config.data.source}: {len(task.train):,} {task.unit} ({task.train.title}), measured on "
        f"{len(task.val):,} ({task.val.title}); {plan.describe(optim)}, batch {optim.batch_size}, {config.optimizer}, "
        f"learning rate {optim.lr:.2e}; {run.describe_device()}"
    )
    run.print_start(task.train.source, notes)
