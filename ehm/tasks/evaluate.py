"""Measure a fine-tuned classifier on labelled images, and print what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ehm import backends, checkpoint
from ehm.backends.base import Backend, Classifier, LearnerState
from ehm.config import FinetuneConfig, load_config
from ehm.data import open_source
from ehm.errors import CheckpointError, DataError
from ehm.runlog import console
from ehm.runs import agree, say_broken
from ehm.tasks.labelled import Part, collect, eval_loader, labels_of, split
from ehm.tasks.metrics import Report, report

__all__ = ["evaluate", "open_classifier", "print_report", "write_json"]

_SHOWN_CLASSES = 20


def evaluate(
    checkpoint: str | Path,
    *,
    config: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> Report:
    """Measure the classifier that ``checkpoint`` (a run's folder or a checkpoint) holds.

    On the images that its training held out; or, where ``config`` or ``overrides`` name another ``data.source``, on
    that one's validation part, or on all of it if it has no parts. The model's settings are always the checkpoint's.
    With ``out`` the report goes to ``out/metrics.json``.
    Raises CheckpointError where there is no classifier, DataError where the source has no labels or other classes.
    """
    backend = backends.get(device)
    classifier, settings, meta = open_classifier(checkpoint, backend, config, overrides)
    classes = tuple(meta["classes"])
    part = _part(settings, meta["config"]["data"]["source"])
    numbers = _renumber(part, classes, settings.data.source)
    processes = backend.processes
    agree(processes, None)
    console.print(f"Evaluating {checkpoint} on {settings.data.source} ({part.title}): {len(part):,} images")
    with eval_loader(part, classifier.image_size, settings, processes) as loader:
        labels, logits = collect(classifier.logits, loader, "evaluate", processes)
    result = report(numbers[labels], logits, classes)
    print_report(result)
    say_broken(loader.broken)
    if out is not None and processes.rank == 0:
        values = {"checkpoint": str(checkpoint), "source": settings.data.source, "part": part.title}
        path = write_json(Path(out) / "metrics.json", {**values, **result.to_json()})
        console.print(f"Report: {path}")
    return result


def open_classifier(
    path: str | Path, backend: Backend, config: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[Classifier, FinetuneConfig, dict[str, Any]]:
    """The classifier in a checkpoint, its configuration (with ``overrides``), and the checkpoint's description.

    What the encoder was initialised from is not needed: the checkpoint says what it is.
    """
    folder = checkpoint.resolve(path)
    arrays, meta = checkpoint.read_model(folder)
    if meta["kind"] != "classifier":
        raise CheckpointError(f"{path}: holds a pretrained encoder, not a classifier; ehm finetune makes one")
    settings = load_config(FinetuneConfig, config if config is not None else meta["config"], overrides)
    stored = FinetuneConfig.model_validate(meta["config"])
    # the source of images is free; the model is the checkpoint's, normalised as it was trained
    model = stored.model.model_copy(update={"init": str(folder)})
    data = settings.data.model_copy(update={"mean": stored.data.mean, "std": stored.data.std})
    settings = stored.model_copy(
        update={"model": model, "data": data, "folds": settings.folds, "fold": settings.fold, "optim": settings.optim}
    )
    classifier = backend.classifier(settings, len(meta["classes"]))
    classifier.load(LearnerState(arrays, {}))
    return classifier, settings, meta


def print_report(result: Report) -> None:
    """Figures for people: the whole, each class (the worst ones of many), and the confusion matrix of a few."""
    auc = "" if result.auc is None else f", AUC {result.auc:.3f} ({result.classes[1]} against {result.classes[0]})"
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.1%}"
    console.print(
        f"top-1 {result.top1:.1%}{top5}, balanced accuracy {result.balanced_accuracy:.1%}{auc} "
        f"on {result.samples:,} images"
    )
    few = len(result.classes) <= _SHOWN_CLASSES
    order = np.arange(len(result.classes)) if few else np.argsort(result.recall, kind="stable")[:_SHOWN_CLASSES]
    table = Table(title=None if few else f"the {_SHOWN_CLASSES} classes of lowest recall")
    table.add_column("class")
    for name in ("precision", "recall", "F1", "images", *(f"called {result.classes[i]}" for i in order if few)):
        table.add_column(name, justify="right")
    for i in order:
        shares = (f"{values[i]:.3f}" for values in (result.precision, result.recall, result.f1))
        counts = (str(count) for count in (result.support[i], *(result.confusion[i] if few else ())))
        table.add_row(result.classes[i], *shares, *counts)
    console.print(table)


def write_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Write ``values`` to ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def _part(settings: FinetuneConfig, trained_on: str) -> Part:
    if settings.data.source == trained_on:
        return split(settings)[1]
    source = open_source(settings.data, "train")
    if source.split == "train":
        return Part(open_source(settings.data, "val"), None, "val")
    return Part(source, None, "all")


def _renumber(part: Part, classes: tuple[str, ...], name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The checkpoint's number of each of the source's classes, matched by name."""
    labels_of(part.source, name)
    unknown = [label for label in part.source.classes if label not in classes]
    if unknown:
        raise DataError(
            f"data.source {name}: class {unknown[0]} is not among the classifier's {len(classes)} "
            f"({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
        )
    return np.array([classes.index(label) for label in part.source.classes], dtype=np.int64)
