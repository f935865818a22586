"""How good are frozen features? A linear probe as in MAE, and nearest neighbours as in DINO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ehm import backends
from ehm.backends.base import Backend
from ehm.config import ProbeConfig
from ehm.console import console
from ehm.data import EvalTransform
from ehm.data.subset import Subset
from ehm.errors import ConfigError
from ehm.tasks.classification.metrics import Report, report
from ehm.tasks.classification.task import Classification
from ehm.tasks.images import collect, eval_loader
from ehm.training.runs import agree, begin, explain_stop, write_json
from ehm.training.supervised import fit

__all__ = ["DEFAULT_CONFIG", "TEMPERATURE", "ProbeResult", "neighbour_votes", "probe"]

DEFAULT_CONFIG = "elpv/probe"
TEMPERATURE = 0.07
"""Of the votes of nearest neighbours (DINO, Caron et al., 2021)."""


@dataclass(frozen=True)
class ProbeResult:
    """Where the results are, and what both probes say about the same images."""

    out: Path
    checkpoint: Path
    linear: Report
    neighbours: Report


def probe(
    config: ProbeConfig | str | Path | None = None,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> ProbeResult:
    """Measure the encoder that ``config.model`` names by a linear probe and by nearest neighbours.

    The linear probe sees what ``config.pool`` says and is trained as fine-tuning is, with the encoder frozen; nearest
    neighbours see the mean of the patch tokens. ``out/metrics.json`` holds both reports. Raises EhmError on bad input.
    """
    folder = Path(out) if out is not None else Path("runs") / "probe"
    settings, _ = begin(ProbeConfig, DEFAULT_CONFIG, config, overrides, folder, resume=False, resumable=False)
    backend = backends.get(device)
    agree(backend.processes, None)
    task = Classification(settings, backend)
    neighbours = measure_neighbours(settings, backend, task.train, task.val)
    with explain_stop(folder, resumable=False):
        linear = fit(task, backend, folder, title="probe")
        _print(settings, linear.report, neighbours)
        if backend.processes.rank == 0:
            values = {"linear": linear.report.to_json(), "neighbours": neighbours.to_json()}
            path = write_json(folder / "metrics.json", {"checkpoint": str(linear.checkpoint), **values})
            console.print(f"Report: {path}")
    return ProbeResult(folder, linear.checkpoint, linear.report, neighbours)


def measure_neighbours(config: ProbeConfig, backend: Backend, train: Subset, val: Subset) -> Report:
    """k-NN on the features of the encoder: each image of ``val`` is classed by its nearest images of ``train``."""
    if config.neighbours > len(train):
        raise ConfigError(f"neighbours {config.neighbours}: there are only {len(train):,} images to search")
    encoder = backend.create_encoder(config.model, config.data)
    transform = EvalTransform.from_spec(encoder.image_size, encoder.inputs)
    found = []
    for part, title in zip((train, val), ("features to search", "features to class"), strict=True):
        with eval_loader(part, transform, config, backend.processes) as loader:
            found.append((part.source.classes, *collect(encoder.compute_features, loader, title, backend.processes)))
    (classes, labels, features), (_, wanted, queries) = found
    return report(wanted, neighbour_votes(features, labels, queries, len(classes), config.neighbours), classes)


def neighbour_votes(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    classes: int,
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> NDArray[np.float64]:
    """Votes of the nearest of ``features`` (n, D) by cosine for ``queries`` (m, D): (m, classes), each row sums to 1.

    The vote of a neighbour weighs exp(cosine / temperature), as in DINO. The mean of ``features`` is taken off first:
    features of one encoder share a large constant part, which hides the angles between them.
    """
    mean = features.mean(axis=0)
    features, queries = _unit(features - mean), _unit(queries - mean)
    count = min(neighbours, len(features))
    votes = np.zeros((len(queries), classes))
    for start in range(0, len(queries), 256):
        rows = slice(start, start + 256)
        cosine = queries[rows] @ features.T
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        weight = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / temperature, dtype=np.float64)
        np.add.at(votes[rows], (np.arange(len(nearest))[:, None], labels[nearest]), weight)
    votes /= votes.sum(axis=1, keepdims=True)
    return votes


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _print(config: ProbeConfig, linear: Report, neighbours: Report) -> None:
    table = Table("probe", "top-1", "balanced accuracy", "AUC", title=f"frozen features of {config.model.init}")
    rows: list[tuple[str, Any]] = [("linear", linear), (f"{config.neighbours} nearest neighbours", neighbours)]
    for name, result in rows:
        auc = "" if result.auc is None else f"{result.auc:.3f}"
        table.add_row(name, f"{result.top1:.1%}", f"{result.balanced_accuracy:.1%}", auc)
    console.print(table)
