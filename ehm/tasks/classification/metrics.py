"""Figures of a classifier.

Shapes: n samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.console import console
from ehm.report.run_card import FiguresCard
from ehm.tasks.class_table import MOST_CLASSES, make_class_table

__all__ = [
    "ClassificationReport",
    "compute_confusion",
    "compute_f1",
    "compute_precision_recall_f1",
    "compute_roc_auc",
    "divide_or_zero",
    "report_classification",
]


@dataclass(frozen=True)
class ClassificationReport(FiguresCard):
    """The figures of an evaluation. Shares are in [0, 1]; figures of classes are in the order of ``classes``.

    ``top5`` is the share of samples whose class is among the five with the highest scores, None if there are no more
    than five classes. ``balanced_accuracy`` is the mean recall of the classes that occur. ``auc`` is None unless there
    are two classes, of which the second is the positive one. ``confusion[i][j]`` is the number of samples of class i
    that were predicted as class j.
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
        """Return plain values for ``metrics.json``."""
        return asdict(self)

    @property
    def figures(self) -> Mapping[str, float | None]:
        """The figures for all samples together."""
        return {"balanced_accuracy": self.balanced_accuracy, "top1": self.top1, "auc": self.auc}

    @property
    def score(self) -> float:
        """The figure that the best checkpoint is chosen by."""
        return self.balanced_accuracy

    def show(self) -> None:
        """Print the figures, each class (the worst ones of many), and the confusion matrix of a few."""
        auc = "" if self.auc is None else f", AUC {self.auc:.3f} ({self.classes[1]} against {self.classes[0]})"
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.1%}"
        console.print(
            f"top-1 {self.top1:.1%}{top5}, balanced accuracy {self.balanced_accuracy:.1%}{auc} "
            f"on {self.samples:,} images"
        )
        columns: dict[str, list[str]] = {}
        for name, values in (("precision", self.precision), ("recall", self.recall), ("F1", self.f1)):
            columns[name] = list(map("{:.3f}".format, values))
        columns["images"] = list(map(str, self.support))
        if len(self.classes) <= MOST_CLASSES:
            # the confusion matrix has a column for each class, and does not fit on a terminal if there are many
            for predicted, name in enumerate(self.classes):
                columns[f"called {name}"] = [str(row[predicted]) for row in self.confusion]
        # stable, so that of classes with the same recall the first ones are listed
        worst_first = np.argsort(self.recall, kind="stable").tolist()
        console.print(make_class_table(self.classes, columns, worst_first, "recall"))


def report_classification(
    labels: NDArray[np.int64], scores: NDArray[np.floating[Any]], classes: Sequence[str]
) -> ClassificationReport:
    """Compare labels (n,) with scores (n, C), of which the highest is the prediction (ties: the first class)."""
    if len(labels) == 0:
        raise ValueError("labels: there is no sample to measure")
    confusion = compute_confusion(labels, scores.argmax(axis=1), len(classes))
    precision, recall, f1 = compute_precision_recall_f1(confusion)
    support = confusion.sum(axis=1)
    auc = None  # it needs samples of both of two classes
    if len(classes) == 2 and (support > 0).all():
        auc = compute_roc_auc(labels == 1, scores[:, 1] - scores[:, 0])
    return ClassificationReport(
        samples=len(labels),
        top1=float(np.trace(confusion) / len(labels)),
        top5=_compute_top5(labels, scores) if len(classes) > 5 else None,
        # without classes that do not occur: they have no recall, and would count as 0
        balanced_accuracy=float(recall[support > 0].mean()),
        auc=auc,
        classes=tuple(classes),
        precision=tuple(precision.tolist()),
        recall=tuple(recall.tolist()),
        f1=tuple(f1.tolist()),
        support=tuple(support.tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def _compute_top5(labels: NDArray[np.int64], scores: NDArray[np.floating[Any]]) -> float:
    """Return the share of samples whose class is among the five with the highest scores, ties in class order."""
    first = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    return float((first == labels[:, None]).any(axis=1).mean())


def compute_confusion(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return counts (C, C): the row is the true class, the column the prediction."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def compute_precision_recall_f1(
    confusion: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return three arrays (C,) from counts (C, C); 0 if a class was never predicted or does not occur."""
    hits = np.diag(confusion).astype(np.float64)
    precision = divide_or_zero(hits, confusion.sum(axis=0))
    recall = divide_or_zero(hits, confusion.sum(axis=1))
    return precision, recall, compute_f1(precision, recall)


def compute_f1(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the harmonic mean of precision and recall (C,), which is 0 if both are 0."""
    return divide_or_zero(2 * precision * recall, precision + recall)


def compute_roc_auc(positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> float:
    """Return the area under the ROC curve: the probability that a positive scores higher than a negative.

    Ties count half. It is computed from ranks (Mann-Whitney). ``positive`` and ``scores`` are (n,). Raises ValueError
    unless there are positives and negatives.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        raise ValueError(f"positive: {positives} of {len(positive)} are positive; an AUC needs both kinds")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    rank = (last_rank - (counts - 1) / 2)[place]  # ties share the mean of their ranks
    return float((rank[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def divide_or_zero(numerator: NDArray[np.float64], denominator: NDArray[Any]) -> NDArray[np.float64]:
    """Return the quotients of two arrays, with 0 where the denominator is 0."""
    quotient = np.zeros_like(numerator)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient
