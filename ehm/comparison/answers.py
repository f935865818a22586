"""The answers of a probe or a classifier for the test images of a split, and the figures computed from them.

m test images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ehm.config import MeasureConfig
from ehm.config.comparison import FigureName
from ehm.storage.writing import replace_file
from ehm.tasks.classification.metrics import report_classification

__all__ = ["Answers", "choose_figure", "compute_figures", "load_answers", "save_answers"]


@dataclass(frozen=True)
class Answers:
    """The true and the answered classes of test images, both (m,), and a ``margin`` (m,).

    With two classes, ``margin`` is the score of the second minus that of the first, which an AUC is computed from.
    Otherwise it is zero.
    """

    labels: NDArray[np.int64]
    answered: NDArray[np.int64]
    margin: NDArray[np.float64]

    @classmethod
    def from_scores(cls, labels: NDArray[np.int64], scores: NDArray[np.floating[Any]]) -> Answers:
        """Answer the class with the highest of ``scores`` (m, C), the first of several equal ones."""
        margin = np.zeros(len(labels))
        if scores.shape[1] == 2:
            margin = (scores[:, 1] - scores[:, 0]).astype(np.float64)
        return cls(labels, scores.argmax(axis=1), margin)

    def take(self, rows: NDArray[np.int64]) -> Answers:
        """Return the answers for the images ``rows``, which may name some twice."""
        return Answers(self.labels[rows], self.answered[rows], self.margin[rows])


def compute_figures(answers: Answers, classes: tuple[str, ...]) -> Mapping[str, float | None]:
    """Return ``top1``, ``balanced_accuracy`` and ``auc``, which is None unless there are two classes and both occur."""
    scores = np.zeros((len(answers.labels), len(classes)))
    scores[np.arange(len(scores)), answers.answered] = 1
    if len(classes) == 2:
        # any two scores with this difference do: its sign decides the answer, and its order the AUC
        scores = np.stack([np.zeros_like(answers.margin), answers.margin], axis=1)
    return report_classification(answers.labels, scores, classes).figures


def choose_figure(measure: MeasureConfig, classes: tuple[str, ...]) -> FigureName:
    """Return the figure that encoders are compared by."""
    if measure.figure != "auto":
        return measure.figure
    return "auc" if len(classes) == 2 else "top1"


def save_answers(path: Path, answers: Sequence[Answers]) -> None:
    """Write the answers for the splits so far to ``path``, complete or not at all."""
    arrays = {}
    for number, each in enumerate(answers):
        for name, array in vars(each).items():
            arrays[f"{number}.{name}"] = np.ascontiguousarray(array)
    with replace_file(path) as temporary:
        save_file(arrays, temporary)


def load_answers(path: Path) -> list[Answers]:
    """Load the answers that :func:`save_answers` wrote; an empty list if the file is missing or damaged."""
    try:
        arrays = load_file(path)
        answers: list[Answers] = []
        while f"{len(answers)}.labels" in arrays:
            number = len(answers)
            answers.append(
                Answers(arrays[f"{number}.labels"], arrays[f"{number}.answered"], arrays[f"{number}.margin"])
            )
    except (OSError, SafetensorError, KeyError):
        return []  # the splits are measured again
    return answers
