"""The wrong answers that a classifier was most confident of: n images, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data import Source
from ehm.errors import BrokenImage
from ehm.report.mistakes import MOST_MISTAKES, Mistake, save_mistakes

__all__ = ["IndexedMistake", "find_mistakes", "write_mistakes"]


@dataclass(frozen=True)
class IndexedMistake:
    """A wrong answer for the image at ``index`` of a source; classes are numbers."""

    index: int
    true: int
    predicted: int
    confidence: float


def find_mistakes(
    indices: NDArray[np.int64],
    labels: NDArray[np.int64],
    logits: NDArray[np.floating[Any]],
    most: int = MOST_MISTAKES,
) -> list[IndexedMistake]:
    """Return the mistakes among images with ``indices`` and ``labels`` (n,) by their ``logits`` (n, C).

    The most confident comes first; the confidence is the softmax of the prediction.
    """
    predicted = logits.argmax(axis=1)
    highest = logits.max(axis=1, keepdims=True)
    # of the highest logit, whose own term in the sum is 1
    confidence = 1 / np.exp(logits - highest, dtype=np.float64).sum(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    # stable: of equally confident ones the first of the source comes first, on every machine
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    found = []
    for row in worst.tolist():
        found.append(IndexedMistake(int(indices[row]), int(labels[row]), int(predicted[row]), float(confidence[row])))
    return found


def write_mistakes(folder: Path, mistakes: Sequence[IndexedMistake], classes: Sequence[str], source: Source) -> None:
    """Write ``mistakes`` with their images, which are read from ``source`` again, into the folder of a run."""
    pictures: list[tuple[Mistake, Image.Image | None]] = []
    for mistake in mistakes:
        image = None
        with suppress(BrokenImage):  # removed since it was measured
            image = source.load(mistake.index)
        true = classes[mistake.true]
        predicted = classes[mistake.predicted]
        pictures.append((Mistake(source.name(mistake.index), true, predicted, mistake.confidence), image))
    save_mistakes(folder, pictures)
