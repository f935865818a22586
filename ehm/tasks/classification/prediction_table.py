"""Write ``predictions.csv``: the answer of a classifier for each image that it was measured on.

Shapes: n images, C classes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ehm.console import console
from ehm.data import Source
from ehm.storage.names import escape_undecodable
from ehm.storage.writing import replace_file

__all__ = ["PREDICTIONS_FILE", "write_class_predictions", "write_label_predictions"]

PREDICTIONS_FILE = "predictions.csv"
MOST_COLUMNS = 100
"""The table has a column with the probability of each class if there are no more classes than this."""
SEPARATOR = ";"
"""The text between the labels of an image."""


def write_class_predictions(
    folder: Path,
    source: Source,
    indices: NDArray[np.int64],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
) -> Path:
    """Write the true and the most probable class of the images at ``indices`` (n,) of ``source``, and probabilities.

    ``labels`` are (n,), ``probabilities`` (n, C).
    """
    predictions = probabilities.argmax(axis=1)
    answers = []
    for row, (true, predicted) in enumerate(zip(labels.tolist(), predictions.tolist(), strict=True)):
        answers.append([classes[true], classes[predicted], f"{probabilities[row, predicted]:.6f}"])
    header = ["image", "true", "predicted", "confidence"]
    return _write_table(folder, source, indices, header, answers, probabilities, classes)


def write_label_predictions(
    folder: Path,
    source: Source,
    indices: NDArray[np.int64],
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    thresholds: Sequence[float],
    classes: Sequence[str],
) -> Path:
    """Write the labels that images have, and those whose ``probabilities`` (n, C) reach their ``thresholds`` (C,)."""
    predictions = probabilities >= np.array(thresholds)
    answers = []
    for true, predicted in zip(targets, predictions, strict=True):
        answers.append([_join_labels(true, classes), _join_labels(predicted, classes)])
    return _write_table(folder, source, indices, ["image", "true", "predicted"], answers, probabilities, classes)


def _join_labels(present: NDArray[np.bool_], classes: Sequence[str]) -> str:
    return SEPARATOR.join(classes[label] for label in np.flatnonzero(present).tolist())


def _write_table(
    folder: Path,
    source: Source,
    indices: NDArray[np.int64],
    header: list[str],
    answers: Iterable[list[str]],
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
) -> Path:
    has_probabilities = len(classes) <= MOST_COLUMNS
    if has_probabilities:
        header = header + [f"probability of {name}" for name in classes]
    path = folder / PREDICTIONS_FILE
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(header)
        for index, answer, row in zip(indices.tolist(), answers, probabilities, strict=True):
            cells = [escape_undecodable(source.name(index)), *answer]
            if has_probabilities:
                cells += [f"{value:.6f}" for value in row.tolist()]
            table.writerow(cells)
    console.print(f"Predictions: {path}")
    return path
