"""The confusion matrix of a classifier for the page: all cells if classes are few, else the most confused pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["MOST_CLASSES", "Cell", "Confusion", "Pair", "describe_confusion"]

MOST_CLASSES = 20
"""The matrix is shown if there are no more classes than this."""
_MOST_PAIRS = 25
"""Pairs of classes that are listed, at most."""


@dataclass(frozen=True)
class Cell:
    """The number of images of the row's class that were predicted as the column's, and their share of the row."""

    count: int
    share: float
    is_right: bool

    @property
    def strength(self) -> int:
        """The strength of the cell's colour, from 0 to 10."""
        # at least 1 if there is any image, so that rare mistakes are visible
        return 0 if self.count == 0 else max(1, round(10 * self.share))


@dataclass(frozen=True)
class Pair:
    """The number of images of class ``true`` that were predicted as ``predicted``, and their share of that class."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """The ``rows`` of a confusion matrix, empty if there are many classes, and the most confused ``pairs``.

    The pair with the most images comes first. ``other_pairs`` is the number of pairs that are not listed.
    """

    classes: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    pairs: tuple[Pair, ...]
    other_pairs: int


def describe_confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Confusion:
    """Return the confusion of ``counts`` (C, C): the row is the true class, the column the predicted one."""
    matrix = np.array(counts, np.int64).reshape(len(classes), len(classes))
    images = np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # at least 1, because a class may have no images
    shares = matrix / images
    wrong = matrix * (1 - np.eye(len(classes), dtype=np.int64))
    # sorted by count, and equal counts by share; np.lexsort takes the first key last
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
