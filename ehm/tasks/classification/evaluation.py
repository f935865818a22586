"""Measure a classifier whose images have one class each, or several labels.

Shapes: n images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Classifier
from ehm.config import FinetuneConfig
from ehm.data import EvalTransform, Source
from ehm.data.subset import Subset, find_targets
from ehm.probabilities import compute_sigmoid, compute_softmax
from ehm.tasks.base import Evaluation
from ehm.tasks.classification.metrics import ClassificationReport, report_classification
from ehm.tasks.classification.mistakes import IndexedMistake, find_label_mistakes, find_mistakes, write_mistakes
from ehm.tasks.classification.multi_label_metrics import MultiLabelReport, report_labels
from ehm.tasks.classification.prediction_table import write_class_predictions, write_label_predictions
from ehm.tasks.predictions import collect_indexed_predictions, track_batches
from ehm.training.loaders import make_eval_loader
from ehm.training.rows import collect_rows
from ehm.training.supervised import Report

__all__ = ["MOST_AT_ONCE", "ClassifierEvaluation", "MultiLabelEvaluation"]

R = TypeVar("R", bound=Report)
MOST_AT_ONCE = 256
"""Images that are measured at once, at most: larger batches are not faster."""


@dataclass(frozen=True)
class _Answers:
    """The truth and the probabilities (n, C) of the images at ``indices`` (n,) in the last measurement."""

    indices: NDArray[np.int64]
    truth: NDArray[Any]
    probabilities: NDArray[np.float64]


class _MeasuredClassifier(Evaluation[R]):
    """The base of both evaluations: reads the images and draws the worst mistakes."""

    def __init__(
        self,
        classifier: Classifier,
        classes: tuple[str, ...],
        config: FinetuneConfig,
        subset: Subset[Source],
        backend: Backend,
    ) -> None:
        # the preparation that the weights ask for, and not the configuration: an exported bundle has the same
        transform = EvalTransform.from_spec(classifier.image_size, classifier.inputs)
        loader = make_eval_loader(
            subset.source, transform, config, backend.processes, most=MOST_AT_ONCE, subset=subset.selected
        )
        super().__init__(config.data.source, subset, loader, backend.processes)
        self._classifier = classifier
        self._classes = classes
        self._mistakes: list[IndexedMistake] = []
        self._answers: _Answers | None = None

    def draw(self, folder: Path) -> None:
        """Write the worst mistakes of the last measurement as small pictures, for the report of a run."""
        write_mistakes(folder, self._mistakes, self.subset.source)


class ClassifierEvaluation(_MeasuredClassifier[ClassificationReport]):
    """Measures a classifier of ``classes``; ``numbers`` (C,) are the numbers of the source's classes among them."""

    def __init__(
        self,
        classifier: Classifier,
        classes: tuple[str, ...],
        numbers: NDArray[np.int64],
        config: FinetuneConfig,
        subset: Subset[Source],
        backend: Backend,
    ) -> None:
        super().__init__(classifier, classes, config, subset, backend)
        self._numbers = numbers

    def measure(self, title: str = "") -> ClassificationReport:
        """Compare the labels of all images with the highest of their logits."""
        indices, source_labels, logits = collect_indexed_predictions(
            self._classifier.compute_logits, self.loader, title, self.processes
        )
        labels = self._numbers[source_labels]
        self._mistakes = find_mistakes(indices, labels, logits, self._classes)
        self._answers = _Answers(indices, labels, compute_softmax(logits))
        return report_classification(labels, logits, self._classes)

    def write_predictions(self, folder: Path) -> None:
        """Write ``predictions.csv``: the class and the probabilities of each image."""
        if self._answers is not None:
            answers = self._answers
            write_class_predictions(
                folder, self.subset.source, answers.indices, answers.truth, answers.probabilities, self._classes
            )


class MultiLabelEvaluation(_MeasuredClassifier[MultiLabelReport]):
    """Measures a classifier whose images may have several of its ``classes``.

    ``numbers`` (C,) are the numbers of the source's classes among them. Without ``thresholds``, each measurement
    chooses those with the highest F1. ``last_thresholds`` are those of the last measurement.
    """

    def __init__(
        self,
        classifier: Classifier,
        classes: tuple[str, ...],
        numbers: NDArray[np.int64],
        config: FinetuneConfig,
        subset: Subset[Source],
        backend: Backend,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        super().__init__(classifier, classes, config, subset, backend)
        self._thresholds = thresholds
        self.last_thresholds: tuple[float, ...] | None = None
        targets = find_targets(subset.source)
        assert targets is not None
        # labels that the source does not know are absent everywhere, and have no figures
        self._targets = np.zeros((len(targets), len(classes)), bool)
        self._targets[:, numbers] = targets

    def measure(self, title: str = "") -> MultiLabelReport:
        """Compare the labels of all images with the probability of each."""
        batches = track_batches(self.loader, title)
        indices, logits = collect_rows(self._classifier.compute_logits, batches, self.processes)
        targets = self._targets[indices]
        probabilities = compute_sigmoid(logits)
        report = report_labels(targets, probabilities, self._classes, self._thresholds)
        self.last_thresholds = report.thresholds
        self._mistakes = find_label_mistakes(indices, targets, probabilities, report.thresholds, self._classes)
        self._answers = _Answers(indices, targets, probabilities)
        return report

    def write_predictions(self, folder: Path) -> None:
        """Write ``predictions.csv``: the labels and the probabilities of each image."""
        if self._answers is not None and self.last_thresholds is not None:
            answers = self._answers
            write_label_predictions(
                folder,
                self.subset.source,
                answers.indices,
                answers.truth,
                answers.probabilities,
                self.last_thresholds,
                self._classes,
            )
