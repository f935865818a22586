"""The wrong answers of a classifier with the highest confidence.

Shapes: n images, C classes or labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config.pixel_format import RGB_BYTES
from ehm.data import Source
from ehm.data.colour_view import to_photograph
from ehm.errors import BrokenImage
from ehm.report.mistakes import MOST_MISTAKES, Mistake, save_mistakes

__all__ = ["IndexedMistake", "find_label_mistakes", "find_mistakes", "write_mistakes"]


@dataclass(frozen=True)
class IndexedMistake:
    """A wrong answer for the image at ``index`` of a source, in words, and the probability of that answer."""

    index: int
    true: str
    predicted: str
    confidence: float


def find_mistakes(
    indices: NDArray[np.int64],
    labels: NDArray[np.int64],
    logits: NDArray[np.floating[Any]],
    classes: Sequence[str],
    most: int = MOST_MISTAKES,
) -> list[IndexedMistake]:
    """Return the mistakes among images with ``indices`` and ``labels`` (n,) by their ``logits`` (n, C).

    The most confident comes first; the confidence is the softmax of the prediction.
    """
    predicted = logits.argmax(axis=1)
    highest = logits.max(axis=1, keepdims=True)
    # the softmax of the highest logit: its numerator is exp(0) = 1
    confidence = 1 / np.exp(logits - highest, dtype=np.float64).sum(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    # stable, so that equally confident ones are in the order of the source, on every machine
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    found = []
    for row in worst.tolist():
        true = classes[labels[row]]
        found.append(IndexedMistake(int(indices[row]), true, classes[predicted[row]], float(confidence[row])))
    return found


def find_label_mistakes(
    indices: NDArray[np.int64],
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    thresholds: Sequence[float],
    classes: Sequence[str],
    most: int = MOST_MISTAKES,
) -> list[IndexedMistake]:
    """Return the labels that were wrongly given to images with ``indices`` (n,), or wrongly not given.

    ``targets`` and ``probabilities`` are (n, C). The confidence is the probability of the answer, "present" or
    "absent"; the most confident mistake comes first.
    """
    predicted = probabilities >= np.array(thresholds)
    confidence = np.where(predicted, probabilities, 1 - probabilities)
    rows, labels = np.nonzero(predicted != targets)
    order = np.argsort(-confidence[rows, labels], kind="stable")[:most]
    found = []
    for row, label in zip(rows[order].tolist(), labels[order].tolist(), strict=True):
        present = classes[label]
        absent = f"not {present}"
        true = present if targets[row, label] else absent
        answer = present if predicted[row, label] else absent
        found.append(IndexedMistake(int(indices[row]), true, answer, float(confidence[row, label])))
    return found


def write_mistakes(folder: Path, mistakes: Sequence[IndexedMistake], source: Source) -> None:
    """Write ``mistakes`` with their images, which are read from ``source`` again, into the folder of a run."""
    pixels = getattr(source, "pixels", RGB_BYTES)
    pictures: list[tuple[Mistake, Image.Image | None]] = []
    for mistake in mistakes:
        image = None
        with suppress(BrokenImage):  # the file may have been removed since the measurement
            image = to_photograph(source.load(mistake.index), pixels)
        kept = Mistake(source.name(mistake.index), mistake.true, mistake.predicted, mistake.confidence)
        pictures.append((kept, image))
    save_mistakes(folder, pictures)
