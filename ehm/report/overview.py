"""The top of the page: the title and the status of the run, and its most important figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ehm.report.known_figures import ROWS_BY_KEY
from ehm.report.measured import Measurement
from ehm.report.numbers import format_share, format_value
from ehm.report.record import Kind, RunRecord
from ehm.report.settings import OBJECTIVE_NAMES

__all__ = ["RUN_NAMES", "Tile", "choose_tiles", "describe_status", "write_title"]

RUN_NAMES: Mapping[Kind, str] = {
    "pretrain": "Pretraining",
    "tokenizer": "Tokenizer",
    "classification": "Classifier",
    "probe": "Probe",
    "segmentation": "Segmentation",
    "detection": "Detection",
    "retrieval": "Retrieval",
    "vision_language": "Vision-language",
}
_MOST_TILES = 6
_CURVE_TILES = ("knn", "knn_ema", "linear", "rankme", "mse", "codes_used", "loss", "images_per_second")
"""Figures of curves at the top of the page, the most important first; those of a task's measurement precede them."""


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page; ``note`` explains it in a few words."""

    name: str
    value: str
    note: str = ""


def write_title(record: RunRecord) -> str:
    """Describe in a few words what was trained."""
    if record.kind == "pretrain":
        objective = OBJECTIVE_NAMES.get(record.setting("objective"), record.setting("objective"))
        return f"{record.setting('encoder')} by {objective} with {record.setting('masking')} masks"
    source = Path(str(record.setting("data.source"))).name
    if record.kind == "tokenizer":
        return f"{record.setting('vocabulary')} visual tokens of {source}"
    classes = record.state.get("classes")
    return f"{len(classes):,} classes of {source}" if classes else source


def describe_status(record: RunRecord) -> tuple[str, str]:
    """Return ``good`` or ``note``, and a sentence on how far the run has come."""
    if record.has_lost_patience:
        measurements = record.state["measurements_without_gain"]
        return "good", f"Stopped early after step {record.step:,}: no new best in {measurements} measurements"
    if record.is_complete:
        return "good", f"Complete: {record.step:,} steps"
    length = "" if record.total_steps is None else f" of {record.total_steps:,}"
    if record.is_stopped:
        return "note", f"Stopped early by run.max_steps, after step {record.step:,}{length}"
    return "note", f"Not complete: in progress or interrupted, after step {record.step:,}{length}"


def choose_tiles(record: RunRecord, measurements: Sequence[Measurement]) -> list[Tile]:
    """Return the figures at the top: those of measurements, then the last values of the main curves."""
    tiles = []
    for measurement in measurements:
        note = measurement.title
        if len(measurements) == 1 and measurement.images is not None:
            note = f"{measurement.images:,} {measurement.unit}"
        for name, value in measurement.figures.items():
            tiles.append(Tile(name, format_share(value), note))
    if record.kind == "probe" and "rankme" in record.metrics:
        tiles.append(Tile("RankMe", format_value(record.metrics["rankme"]), "directions of the features"))
    for key in _CURVE_TILES:
        curve = record.curves.find(key)
        if curve is None:
            continue
        row = ROWS_BY_KEY[key]
        name = row.title
        if key.endswith("_ema"):
            name += f", {row.keys[key]}"
        value = curve.values[-1]
        note = f"at first {format_value(curve.values[0], row.unit)}"
        if row.group == "speed":
            value = sum(curve.values) / len(curve.values)
            note = "mean of the run"
        tiles.append(Tile(name, format_value(value, row.unit), note))
    return tiles[:_MOST_TILES]
