"""``ehm evaluate``: measure the model of a task on images that it was not trained on."""

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
    """Measure the model in ``checkpoint``, the folder of a run of ``ehm finetune`` or one of its checkpoints.

    It is measured on the images that its training held out. If ``config`` or ``overrides`` name other images, it is
    measured on their validation part, or on all of them if they have no parts. Images that the model was trained on are
    recognised by their contents or names, counted and left out, wherever their files are now. The settings of the model
    always come from the checkpoint. With ``task="retrieval"``, ``checkpoint`` is an encoder that is measured without
    training for the task: a run of ``ehm train``, a file of weights or ``timm:NAME``.

    Returns the report of the task, for example :class:`ehm.tasks.classification.metrics.ClassificationReport`. With
    ``out`` it is also written to ``out/metrics.json``, together with the pictures that the task draws. Raises
    CheckpointError if ``checkpoint`` has no model of a task, and DataError if the images do not fit the model or if it
    was trained on all of them.
    """
    backend = backends.get(device)
    processes = backend.processes
    connect_processes(processes)  # before anything is printed, because it silences all processes but one
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
    try:  # stops the workers even if the measurement fails
        report = evaluation.measure("evaluate")
    finally:
        evaluation.close()
    report.show()
    print_unreadable(evaluation.loader.unreadable, processes)
    # all processes have the same report
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
