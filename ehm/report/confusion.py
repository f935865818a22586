"""The confusion matrix of a classifier for the page: every cell of a few classes, the most confused pairs of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["MOST_CLASSES", "Cell", "Confusion", "Pair", "describe_confusion"]

MOST_CLASSES = 20
"""Classes whose whole matrix can be read on a page."""
_MOST_PAIRS = 25


@dataclass(frozen=True)
class Cell:
    """The number of images of a row's class that were called a column's, and its share of the row's images."""

    count: int
    share: float
    is_right: bool

    @property
    def strength(self) -> int:
        """The tint of the cell from 0 to 10."""
        # any mistake is tinted, so that a rare one is seen
        return 0 if self.count == 0 else max(1, round(10 * self.share))


@dataclass(frozen=True)
class Pair:
    """Images of class ``true`` that were called ``predicted``, and their share of the images of that class."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """The answers of a classifier by class: ``rows`` for a few classes, else none; ``pairs`` by their counts.

    ``other_pairs`` counts the pairs that are not listed.
    """

    classes: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    pairs: tuple[Pair, ...]
    other_pairs: int


def describe_confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Confusion:
    """Return the confusion of ``counts`` (C, C): the row is the true class, the column the predicted one."""
    matrix = np.array(counts, np.int64).reshape(len(classes), len(classes))
    images = np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # a class without images has no shares
    shares = matrix / images
    wrong = matrix * (1 - np.eye(len(classes), dtype=np.int64))
    # of equal counts, the larger share of its class is the worse one
    worst_first = np.lexsort((-shares.ravel(), -wrong.ravel()))
    confused = int(np.count_nonzero(wrong))
    pairs = []
    for place in worst_first[: min(confused, _MOST_PAIRS)].tolist():
        true, predicted = divmod(place, len(classes))
        count = int(matrix[true, predicted])
        pairs.append(Pair(classes[true], classes[predicted], count, float(shares[true, predicted])))
    rows = []
    if len(classes) <= MOST_CLASSES:
        for true, (row, row_shares) in enumerate(zip(matrix.tolist(), shares.tolist(), strict=True)):
            cells = []
            for predicted, (count, share) in enumerate(zip(row, row_shares, strict=True)):
                cells.append(Cell(count, share, true == predicted))
            rows.append(tuple(cells))
    return Confusion(tuple(classes), tuple(rows), tuple(pairs), max(0, confused - _MOST_PAIRS))
