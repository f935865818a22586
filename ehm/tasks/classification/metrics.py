"""Figures of a classifier: n samples, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ehm.console import console

__all__ = ["Report", "confusion_matrix", "precision_recall_f1", "report", "roc_auc"]

_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Report:
    """What an evaluation says. Shares are in [0, 1]; per-class figures follow the order of ``classes``.

    ``top5`` counts samples whose class is among the five of the highest scores, and exists for more classes than that.
    ``balanced_accuracy`` is the mean recall of the classes that occur; ``auc`` exists for two classes, the second being
    the positive one; ``confusion[i][j]`` counts samples of class i called j.
    """

    samples: int
    top1: float
    top5: float | None
    balanced_accuracy: float
    auc: float | None
    classes: tuple[str, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    support: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        return asdict(self)

    @property
    def figures(self) -> dict[str, float | None]:
        """Those for the whole."""
        return {"balanced_accuracy": self.balanced_accuracy, "top1": self.top1, "auc": self.auc}

    @property
    def score(self) -> float:
        """What the best checkpoint is chosen by."""
        return self.balanced_accuracy

    def show(self) -> None:
        """Print the whole, each class (the worst ones of many), and the confusion matrix of a few."""
        auc = "" if self.auc is None else f", AUC {self.auc:.3f} ({self.classes[1]} against {self.classes[0]})"
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.1%}"
        console.print(
            f"top-1 {self.top1:.1%}{top5}, balanced accuracy {self.balanced_accuracy:.1%}{auc} "
            f"on {self.samples:,} images"
        )
        few = len(self.classes) <= _SHOWN_CLASSES
        order = np.arange(len(self.classes)) if few else np.argsort(self.recall, kind="stable")[:_SHOWN_CLASSES]
        table = Table(title=None if few else f"the {_SHOWN_CLASSES} classes of lowest recall")
        table.add_column("class")
        for name in ("precision", "recall", "F1", "images", *(f"called {self.classes[i]}" for i in order if few)):
            table.add_column(name, justify="right")
        for i in order:
            shares = (f"{values[i]:.3f}" for values in (self.precision, self.recall, self.f1))
            counts = (str(count) for count in (self.support[i], *(self.confusion[i] if few else ())))
            table.add_row(self.classes[i], *shares, *counts)
        console.print(table)


def report(labels: NDArray[np.int64], scores: NDArray[np.floating[Any]], classes: Sequence[str]) -> Report:
    """Compare labels (n,) with scores (n, C), of which the highest is the prediction (ties: the first class)."""
    if len(labels) == 0:
        raise ValueError("labels: there is no sample to measure")
    confusion = confusion_matrix(labels, scores.argmax(axis=1), len(classes))
    precision, recall, f1 = precision_recall_f1(confusion)
    support = confusion.sum(axis=1)
    two = len(classes) == 2 and bool((support > 0).all())
    return Report(
        samples=len(labels),
        top1=float(np.trace(confusion) / len(labels)),
        top5=_top5(labels, scores) if len(classes) > 5 else None,
        balanced_accuracy=float(recall[support > 0].mean()),
        auc=roc_auc(labels == 1, scores[:, 1] - scores[:, 0]) if two else None,
        classes=tuple(classes),
        precision=tuple(precision.tolist()),
        recall=tuple(recall.tolist()),
        f1=tuple(f1.tolist()),
        support=tuple(support.tolist()),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def _top5(labels: NDArray[np.int64], scores: NDArray[np.floating[Any]]) -> float:
    """Share of samples whose class is among their first five; of equal scores, lower classes come first."""
    first = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    return float((first == labels[:, None]).any(axis=1).mean())


def confusion_matrix(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts (C, C): the row is the true class, the column the prediction."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def precision_recall_f1(
    confusion: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Three arrays (C,) from counts (C, C); 0 where a class was never predicted or does not occur."""
    hits = np.diag(confusion).astype(np.float64)
    precision = _divide(hits, confusion.sum(axis=0))
    recall = _divide(hits, confusion.sum(axis=1))
    return precision, recall, _divide(2 * precision * recall, precision + recall)


def roc_auc(positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> float:
    """Chance that a random positive scores higher than a random negative, ties counting half (Mann-Whitney).

    ``positive`` and ``scores`` are (n,); both kinds must occur, or ValueError.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        raise ValueError(f"positive: {positives} of {len(positive)} are positive; an AUC needs both kinds")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    rank = (last - (counts - 1) / 2)[place]  # ties share the mean of their ranks
    return float((rank[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _divide(numerator: NDArray[np.float64], denominator: NDArray[Any]) -> NDArray[np.float64]:
    quotient = np.zeros_like(numerator)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient
