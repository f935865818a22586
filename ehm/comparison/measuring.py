"""Measure one encoder on one split of the labelled images: by a probe of its features, or by fine-tuning it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ehm.analysis.neighbours import vote_by_neighbours
from ehm.backends.base import Backend
from ehm.comparison.answers import Answers, choose_figure, compute_figures
from ehm.comparison.features import ImageFeatures, extract_features
from ehm.comparison.finetuning import finetune_on_split
from ehm.comparison.images import LabelledImages, Split, open_images
from ehm.comparison.probes import probe_linearly
from ehm.config import MeasureConfig, ModelSource
from ehm.config.comparison import ProbeName
from ehm.errors import ConfigError, DataError

__all__ = ["average_figures", "check_measure", "choose_finetuning_splits", "measure_run", "probe_split"]


def check_measure(measure: MeasureConfig, images: LabelledImages) -> None:
    """Raise ConfigError if encoders cannot be measured on ``images`` with the settings of ``measure``."""
    if measure.figure == "auc" and len(images.classes) != 2:
        raise ConfigError(
            f"figure auc: is for two classes, and {measure.source} has {len(images.classes)}; take top1 or "
            "balanced_accuracy"
        )
    smallest = min(len(split.train) for split in images.splits)
    if "knn" in measure.probes and measure.neighbours > smallest:
        raise ConfigError(f"neighbours {measure.neighbours}: there are only {smallest:,} images to search")


def probe_split(
    probe: ProbeName, features: ImageFeatures, images: LabelledImages, split: Split, measure: MeasureConfig
) -> Answers:
    """Train the probe ``knn`` or ``linear`` on the training images of ``split``; return its answers for the others."""
    readable = features.select_readable(split)
    if not len(readable.train) or not len(readable.test):
        raise DataError(f"data.source {measure.source}: none of the images of a split can be read")
    known = features.values[readable.train]
    labels = images.labels[readable.train]
    queries = features.values[readable.test]
    classes = len(images.classes)
    if probe == "knn":
        scores = vote_by_neighbours(known, labels, queries, classes, measure.neighbours)
    else:
        scores = probe_linearly(known, labels, queries, classes)
    return Answers.from_scores(images.labels[readable.test], scores)


def choose_finetuning_splits(measure: MeasureConfig, images: LabelledImages) -> tuple[Split, ...]:
    """Return the splits that encoders are fine-tuned on: the first ``finetune_folds`` of the first division.

    Fine-tuning takes long, so the divisions after the first are left to the probes.
    """
    count = min(measure.folds, measure.finetune_folds or measure.folds)
    return images.splits[:count]


def measure_run(run: Path, measure: MeasureConfig, backend: Backend, device: str, seed: int) -> dict[str, float]:
    """Measure the encoder of the complete ``run``, and return the mean of each figure over the splits by its name.

    ``knn.top1``, ``knn.auc`` and so on are all figures of the probe ``knn``, and ``knn`` alone is the one of them that
    encoders are compared by. If the measurement has a name, it precedes them: ``NAME.knn``.
    """
    images = open_images(measure)
    check_measure(measure, images)
    encoder = backend.create_encoder(ModelSource(init=str(run), image_size=measure.image_size))
    features = extract_features(encoder, images, measure.workers or 0)
    figures: dict[str, float] = {}
    for probe in measure.probes:
        if probe == "finetune":
            answers = []
            for split in choose_finetuning_splits(measure, images):
                answers.append(finetune_on_split(str(run), images, split, measure, device, seed, run / "finetune"))
        else:
            answers = [probe_split(probe, features, images, split, measure) for split in images.splits]
        figures |= _name_figures(probe, average_figures(answers, images.classes), measure, images)
    return figures


def average_figures(answers: list[Answers], classes: tuple[str, ...]) -> dict[str, float]:
    """Return the mean over splits of each figure that exists for all of them."""
    figures_of_splits = [compute_figures(each, classes) for each in answers]
    averages = {}
    for name in figures_of_splits[0]:
        values = [figures[name] for figures in figures_of_splits]
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(values):
            averages[name] = sum(numbers) / len(numbers)
    return averages


def _name_figures(
    probe: ProbeName, averages: Mapping[str, float], measure: MeasureConfig, images: LabelledImages
) -> dict[str, float]:
    """Return the figures of a probe by their names in results, which :func:`measure_run` explains."""
    prefix = f"{measure.name}." if measure.name else ""
    named = {f"{prefix}{probe}.{figure}": value for figure, value in averages.items()}
    chosen = averages.get(choose_figure(measure, images.classes))
    if chosen is not None:
        named[f"{prefix}{probe}"] = chosen
    return named
