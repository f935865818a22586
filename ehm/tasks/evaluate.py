"""Measure what a task has trained, on images that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ehm import backends
from ehm.backends.base import Backend
from ehm.console import console
from ehm.data.decoding.depth_notes import describe_depths
from ehm.errors import CheckpointError, ConfigError
from ehm.storage.checkpoint import open_checkpoint
from ehm.storage.writing import write_json
from ehm.tasks.base import Evaluation
from ehm.tasks.registry import TASKS, find_task_by_kind
from ehm.training.run import connect_processes, print_unreadable

__all__ = ["evaluate"]


def evaluate(
    checkpoint: str | Path,
    *,
    task: str | None = None,
    config: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> Any:
    """Measure the classifier, or other task's model, that ``checkpoint`` (a run's folder or a checkpoint) holds.

    It is measured on the images that its training held out; or, if ``config`` or ``overrides`` name other images, on
    the validation part of those, or on all of them if they have no parts. Images are known by their names, sizes and
    bytes, wherever they lie: those that the training saw are counted and left out. The model's settings are always the
    checkpoint's. ``task="retrieval"`` measures an encoder without any training for the task: a run of ``ehm train``, a
    file of weights or ``timm:NAME``.

    With ``out`` the report goes to ``out/metrics.json``, and what a task draws beside it. The report is that of the
    task, for example :class:`ehm.tasks.classification.metrics.ClassificationReport`.
    Raises CheckpointError if no task's model is there, DataError if the images do not fit it or were all trained on.
    """
    backend = backends.get(device)
    processes = backend.processes
    connect_processes(processes)  # first, so that only one of them prints
    if task is None:
        evaluation = _open_trained(checkpoint, backend, config, overrides)
    else:
        evaluation = _open_untrained(task, str(checkpoint), backend, config, overrides)
    subset = evaluation.subset
    console.print(
        f"Evaluating {checkpoint} on {evaluation.source_name} ({subset.title}): {len(subset):,} {evaluation.unit}"
    )
    for note in (*subset.source.notes, *describe_depths(subset.source)):
        console.print(f"  {note}")
    try:  # workers end also if the measurement fails
        report = evaluation.measure("evaluate")
    finally:
        evaluation.close()
    report.show()
    print_unreadable(evaluation.loader.unreadable, processes)
    # all processes have the same report; one writes it
    if out is not None and processes.rank == 0:
        values = {"checkpoint": str(checkpoint), "source": evaluation.source_name, "part": subset.title}
        path = write_json(Path(out) / "metrics.json", {**values, **report.to_json()})
        console.print(f"Figures: {path}")
        evaluation.write_predictions(Path(out))
        evaluation.draw(Path(out))
    return report


def _open_trained(
    path: str | Path, backend: Backend, config: str | Path | None, overrides: Sequence[str]
) -> Evaluation[Any]:
    checkpoint = open_checkpoint(path)
    entry = find_task_by_kind(checkpoint.kind)
    if entry is None:
        raise CheckpointError(f"{path}: holds a pretrained encoder, not a classifier; ehm finetune makes one")
    if checkpoint.metadata.get("data") is None:
        console.print(
            f"{path} was written by an earlier version of ehm and does not say which images it was trained on: they "
            "could not be compared, and the path of data.source alone decides what was held out",
            markup=False,
        )
    return entry.load_class().open_evaluation(checkpoint, backend, config, overrides)


def _open_untrained(
    task: str, init: str, backend: Backend, config: str | Path | None, overrides: Sequence[str]
) -> Evaluation[Any]:
    entry = TASKS.get(task)
    if entry is None or not entry.measures_untrained:
        possible = ", ".join(name for name, each in TASKS.items() if each.measures_untrained)
        raise ConfigError(f"--task {task}: only {possible} measures an encoder without training; omit it")
    return entry.load_class().open_untrained(init, backend, config, overrides)
