"""Measures of frozen features: a linear probe as in MAE, and nearest neighbours as in DINO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ehm.backends.base import Backend
from ehm.config import ProbeConfig
from ehm.console import console
from ehm.data import EvalTransform, Source
from ehm.data.subset import Subset
from ehm.errors import ConfigError
from ehm.storage.writing import write_json
from ehm.tasks.classification.metrics import ClassificationReport, report_classification
from ehm.tasks.classification.task import MOST_AT_ONCE, Classification
from ehm.tasks.predictions import collect_predictions
from ehm.training.loaders import make_eval_loader
from ehm.training.run import open_run
from ehm.training.supervised import train_task

__all__ = ["DEFAULT_CONFIG", "TEMPERATURE", "ProbeResult", "measure_neighbours", "probe", "vote_by_neighbours"]

DEFAULT_CONFIG = "elpv/probe"
DEFAULT_OUT = Path("runs/probe")
TEMPERATURE = 0.07
"""The temperature of the votes of nearest neighbours (DINO, Caron et al., 2021)."""
_QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class ProbeResult:
    """The results of both probes on the same images, and the folder and checkpoint that hold them."""

    out: Path
    checkpoint: Path
    linear: ClassificationReport
    neighbours: ClassificationReport


def probe(
    config: ProbeConfig | str | Path | None = None,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> ProbeResult:
    """Measure the encoder that ``config.model`` names by a linear probe and by nearest neighbours.

    The linear probe sees what ``config.pool`` says and is trained as fine-tuning is, with the encoder frozen; nearest
    neighbours see what ``config.neighbours_pool`` says. ``out/metrics.json`` holds both reports. Raises
    EhmError on bad input.
    """
    folder = Path(out or DEFAULT_OUT)
    run = open_run(ProbeConfig, DEFAULT_CONFIG, config, overrides, device, folder, is_resumable=False)
    task = Classification(run.config, run.backend)
    # first, as it takes no training: what is wrong with its settings is said soon
    neighbours = measure_neighbours(run.config, run.backend, task.train, task.val)
    with run.explain_write_errors():
        linear = train_task(task, run, title="probe")
        _print_reports(run.config, linear.report, neighbours)
        if run.is_main_process:
            values = {
                "checkpoint": str(linear.checkpoint),
                "linear": linear.report.to_json(),
                "neighbours": neighbours.to_json(),
            }
            path = write_json(folder / "metrics.json", values)
            console.print(f"Report: {path}")
    return ProbeResult(folder, linear.checkpoint, linear.report, neighbours)


def measure_neighbours(
    config: ProbeConfig, backend: Backend, train: Subset[Source], val: Subset[Source]
) -> ClassificationReport:
    """Class each image of ``val`` by the images of ``train`` whose features are nearest to its own (k-NN)."""
    if config.neighbours > len(train):
        raise ConfigError(f"neighbours {config.neighbours}: there are only {len(train):,} images to search")
    encoder = backend.create_encoder(config.model, config.data, config.neighbours_pool)
    transform = EvalTransform.from_spec(encoder.image_size, encoder.inputs)

    def extract_features(subset: Subset[Source], title: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        with make_eval_loader(
            subset.source, transform, config, backend.processes, most=MOST_AT_ONCE, subset=subset.selected
        ) as loader:
            return collect_predictions(encoder.compute_features, loader, title, backend.processes)

    labels, features = extract_features(train, "features to search")
    wanted, queries = extract_features(val, "features to class")
    classes = train.source.classes
    votes = vote_by_neighbours(features, labels, queries, len(classes), config.neighbours)
    return report_classification(wanted, votes, classes)


def vote_by_neighbours(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    classes: int,
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> NDArray[np.float64]:
    """Return the votes (m, classes) of the nearest of ``features`` (n, D) for ``queries`` (m, D); rows sum to 1.

    The vote of a neighbour weighs exp(cosine / temperature), as in DINO.
    """
    # features of one encoder share a large constant part, which hides the angles between them
    mean = features.mean(axis=0)
    features = _normalise_rows(features - mean)
    queries = _normalise_rows(queries - mean)
    count = min(neighbours, len(features))
    votes = np.zeros((len(queries), classes))
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        cosine = queries[rows] @ features.T
        # only the nearest are needed, in any order, which is faster than sorting all
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        # 1 is taken off, which changes no share and keeps exp from growing beyond float64
        weight = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / temperature, dtype=np.float64)
        # not votes[...] += weight, which would count a class once however many neighbours have it
        np.add.at(votes[rows], (np.arange(len(nearest))[:, None], labels[nearest]), weight)
    votes /= votes.sum(axis=1, keepdims=True)
    return votes


def _normalise_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _print_reports(config: ProbeConfig, linear: ClassificationReport, neighbours: ClassificationReport) -> None:
    table = Table("probe", "top-1", "balanced accuracy", "AUC", title=f"frozen features of {config.model.init}")
    for name, report in (("linear", linear), (f"{config.neighbours} nearest neighbours", neighbours)):
        auc = "" if report.auc is None else f"{report.auc:.3f}"
        table.add_row(name, f"{report.top1:.1%}", f"{report.balanced_accuracy:.1%}", auc)
    console.print(table)
