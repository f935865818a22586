"""Measure what a task has trained, on images that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from ehm import backends
from ehm.config import TaskConfig, load_config
from ehm.console import console
from ehm.data.decoding.depth_notes import describe_depths
from ehm.data.subset import Subset
from ehm.errors import CheckpointError, ConfigError
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import open_checkpoint
from ehm.training.runs import agree, all_broken, say_broken, write_json
from ehm.training.supervised import Measured

__all__ = ["Evaluation", "Stored", "evaluate"]

C = TypeVar("C", bound=TaskConfig)
R = TypeVar("R", bound=Measured)

_HOMES = {
    "classifier": "ehm.tasks.classification.task",
    "detector": "ehm.tasks.detection.task",
    "segmenter": "ehm.tasks.segmentation.task",
    "embedder": "ehm.tasks.retrieval.task",
}
"""Where ``reopen`` is for each kind of checkpoint."""
_UNTRAINED = {"retrieval": "ehm.tasks.retrieval.task"}
"""Where ``untrained`` is for each task that an encoder can be measured in as it is."""


@dataclass(frozen=True)
class Stored:
    """A task's checkpoint: its folder, its weights and its description."""

    folder: Path
    arrays: Arrays
    meta: dict[str, Any]

    def settings(
        self, kind: type[C], config: str | Path | None, overrides: Sequence[str], measuring: Sequence[str] = ()
    ) -> C:
        """The checkpoint's configuration, with the images, folds and batches of ``config`` and ``overrides``.

        The model is always the checkpoint's, and its images are prepared as in its training unless something else is
        said. What it began with is not needed.
        ``measuring`` are further keys of the task that say how it is measured. Raises ConfigError where those do not go
        with the checkpoint.
        """
        given = load_config(kind, config if config is not None else self.meta["config"], overrides)
        said = given.model_dump()
        own = load_config(kind, {**self.meta["config"], **{key: said[key] for key in measuring}})
        model = own.model.model_copy(update={"init": str(self.folder)})
        free = {"data": given.data, "folds": given.folds, "fold": given.fold, "optim": given.optim}
        return own.model_copy(update={"model": model, **free})


@dataclass(frozen=True)
class Evaluation(Generic[R]):
    """What is going to be measured; ``broken`` are the files that could not be read, and why.

    ``draw`` writes pictures of results into a folder, after the measurement.
    """

    source: str
    part: Subset
    measure: Callable[[], R]
    broken: Mapping[str, str]
    draw: Callable[[Path], None] | None = None


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

    On the images that its training held out; or, if ``config`` or ``overrides`` name other images, on the validation
    part of those, or on all of them if they have no parts. Images are known by their names, sizes and bytes, wherever
    they lie: those that the training saw are counted and left out. The model's settings are always the checkpoint's.
    ``task="retrieval"`` measures an encoder without any training for the task: a run of ``ehm train``, a file of
    weights or ``timm:NAME``.

    With ``out`` the report goes to ``out/metrics.json``, and what a task draws beside it. The report is that of the
    task, for example :class:`ehm.tasks.classification.metrics.Report`.
    Raises CheckpointError if no task's model is there, DataError if the images do not fit it or were all trained on.
    """
    backend = backends.get(device)
    processes = backend.processes
    agree(processes, None)
    evaluation: Evaluation[Measured]
    if task is None:
        stored = _read(checkpoint)
        evaluation = import_module(_HOMES[stored.meta["kind"]]).reopen(stored, backend, config, overrides)
    elif task in _UNTRAINED:
        evaluation = import_module(_UNTRAINED[task]).untrained(str(checkpoint), backend, config, overrides)
    else:
        raise ConfigError(f"--task {task}: only {', '.join(_UNTRAINED)} measures an encoder without training; omit it")
    part = evaluation.part
    console.print(f"Evaluating {checkpoint} on {evaluation.source} ({part.title}): {len(part):,} images")
    for note in (*part.source.notes, *describe_depths(part.source)):
        console.print(f"  {note}")
    result = evaluation.measure()
    result.show()
    say_broken(all_broken(evaluation.broken, processes))
    if out is not None and processes.rank == 0:
        values = {"checkpoint": str(checkpoint), "source": evaluation.source, "part": part.title}
        path = write_json(Path(out) / "metrics.json", {**values, **result.to_json()})
        console.print(f"Report: {path}")
        if evaluation.draw is not None:
            evaluation.draw(Path(out))
    return result


def _read(path: str | Path) -> Stored:
    opened = open_checkpoint(path)
    if opened.kind not in _HOMES:
        raise CheckpointError(f"{path}: holds a pretrained encoder, not a classifier; ehm finetune makes one")
    if opened.metadata.get("data") is None:
        console.print(
            f"{path} was written by an earlier version of ehm and does not say which images it was trained on: they "
            "could not be compared, and the path of data.source alone decides what was held out",
            markup=False,
        )
    return Stored(opened.folder, opened.model, opened.metadata)
