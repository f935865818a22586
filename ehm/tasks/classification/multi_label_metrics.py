"""Figures of a classifier whose images may have several labels.

Shapes: n images, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.console import console
from ehm.report.run_card import FiguresCard
from ehm.tasks.class_table import make_class_table
from ehm.tasks.classification.metrics import compute_f1, compute_roc_auc, divide_or_zero

__all__ = [
    "MultiLabelReport",
    "choose_thresholds",
    "compute_average_precision",
    "report_labels",
]

DEFAULT_THRESHOLD = 0.5
"""The threshold of a label that no image has, so that none can be chosen."""


@dataclass(frozen=True)
class MultiLabelReport(FiguresCard):
    """The figures of an evaluation. Shares are in [0, 1]; figures of labels follow the order of ``classes``.

    A label is predicted if its probability reaches its threshold. ``chosen_here`` is true if thresholds were chosen on
    these same images, which makes F1 optimistic. ``average_precision`` and ``auc`` need no threshold; they are None if
    no image has the label, and ``auc`` also if all images have it. ``mean_ap`` and ``macro_f1`` are the means of
    average precision and F1 over the labels that occur, ``micro_f1`` is the F1 of all answers together, and ``exact``
    the share of images with only right answers.
    """

    samples: int
    mean_ap: float
    macro_f1: float
    micro_f1: float
    exact: float
    classes: tuple[str, ...]
    average_precision: tuple[float | None, ...]
    auc: tuple[float | None, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    support: tuple[int, ...]
    thresholds: tuple[float, ...]
    chosen_here: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``."""
        return asdict(self)

    @property
    def figures(self) -> Mapping[str, float | None]:
        """The figures for all images together."""
        return {"mean_ap": self.mean_ap, "macro_f1": self.macro_f1, "micro_f1": self.micro_f1}

    @property
    def score(self) -> float:
        """The figure that the best checkpoint is chosen by."""
        return self.mean_ap

    def show(self) -> None:
        """Print the figures and each label, the worst ones of many."""
        console.print(
            f"mAP {self.mean_ap:.1%}, macro F1 {self.macro_f1:.3f}, micro F1 {self.micro_f1:.3f}, all labels right "
            f"{self.exact:.1%} on {self.samples:,} images"
        )
        if self.chosen_here:
            console.print(
                "  thresholds are those of the highest F1 on these same images, whose F1 is therefore too good"
            )
        columns: dict[str, list[str]] = {}
        for name, values in (
            ("AP", self.average_precision),
            ("AUC", self.auc),
            ("threshold", self.thresholds),
            ("precision", self.precision),
            ("recall", self.recall),
            ("F1", self.f1),
        ):
            columns[name] = ["" if value is None else f"{value:.3f}" for value in values]
        columns["images"] = list(map(str, self.support))
        precision = [1.0 if value is None else value for value in self.average_precision]
        # stable, so that of labels with the same figure the first ones are listed
        worst_first = np.argsort(precision, kind="stable").tolist()
        console.print(make_class_table(self.classes, columns, worst_first, "average precision"))


def report_labels(
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    thresholds: Sequence[float] | None = None,
) -> MultiLabelReport:
    """Compare ``probabilities`` (n, C) with ``targets`` (n, C), True for the labels that an image has.

    Without ``thresholds``, those with the highest F1 are chosen.
    """
    if not len(targets):
        raise ValueError("targets: there is no image to measure")
    chosen = choose_thresholds(targets, probabilities) if thresholds is None else tuple(thresholds)
    predicted = probabilities >= np.array(chosen)
    hits = (predicted & targets).sum(axis=0)
    support = targets.sum(axis=0)
    precision = divide_or_zero(hits.astype(np.float64), predicted.sum(axis=0))
    recall = divide_or_zero(hits.astype(np.float64), support)
    f1 = compute_f1(precision, recall)
    average_precision: list[float | None] = []
    auc: list[float | None] = []
    for label in range(len(classes)):
        present = targets[:, label]
        scores = probabilities[:, label]
        average_precision.append(compute_average_precision(present, scores) if present.any() else None)
        has_both = present.any() and not present.all()
        auc.append(compute_roc_auc(present, scores) if has_both else None)
    occurs = support > 0
    known = [value for value in average_precision if value is not None]
    answers = predicted.sum() + targets.sum()
    return MultiLabelReport(
        samples=len(targets),
        mean_ap=float(np.mean(known)) if known else 0.0,
        macro_f1=float(f1[occurs].mean()) if occurs.any() else 0.0,
        micro_f1=float(2 * hits.sum() / answers) if answers else 0.0,
        exact=float((predicted == targets).all(axis=1).mean()),
        classes=tuple(classes),
        average_precision=tuple(average_precision),
        auc=tuple(auc),
        precision=tuple(precision.tolist()),
        recall=tuple(recall.tolist()),
        f1=tuple(f1.tolist()),
        support=tuple(support.tolist()),
        thresholds=chosen,
        chosen_here=thresholds is None,
    )


def choose_thresholds(targets: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the threshold of each label (C,) with the highest F1; one half for a label that no image has.

    Thresholds halfway between two neighbouring probabilities are tried. Of equally good ones, the nearest to one half
    is taken.
    """
    return tuple(_choose_threshold(targets[:, label], probabilities[:, label]) for label in range(targets.shape[1]))


def compute_average_precision(positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> float:
    """Return the average precision AP = sum over k of (R_k - R_{k-1}) P_k, without interpolation.

    R_k and P_k are recall and precision at the k-th highest of the distinct scores. ``positive`` and ``scores`` are
    (n,). Raises ValueError if nothing is positive.
    """
    if not positive.any():
        raise ValueError("positive: none is, and an average precision needs one")
    _, hits, answers = _count_at_cuts(positive, scores)
    recall = hits / positive.sum()
    return float(np.sum(np.diff(recall, prepend=0) * hits / answers))


def _choose_threshold(positive: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> float:
    if not positive.any():
        return DEFAULT_THRESHOLD
    cuts, hits, answers = _count_at_cuts(positive, probabilities)
    # the threshold below the lowest probability is halfway between it and 0
    thresholds = (cuts + np.append(cuts[1:], 0)) / 2
    f1 = 2 * hits / (answers + positive.sum())
    best = np.flatnonzero(np.isclose(f1, f1.max(), rtol=1e-12))
    nearest = np.abs(thresholds[best] - DEFAULT_THRESHOLD).argmin()
    return float(thresholds[best[nearest]])


def _count_at_cuts(
    positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Return the distinct scores, falling, and for each the numbers of positives and samples that reach it."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last_of_score = np.flatnonzero(np.append(falling[:-1] != falling[1:], True))
    hits = np.cumsum(positive[order], dtype=np.int64)[last_of_score]
    return falling[last_of_score], hits, last_of_score + 1
