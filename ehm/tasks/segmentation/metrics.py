"""Figures of a segmentation by the rules of ADE20K's benchmark and mmsegmentation: over the pixels of all images.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.console import console
from ehm.data.sources.masks import IGNORED
from ehm.report.run_card import FiguresCard
from ehm.tasks.class_table import make_class_table

__all__ = ["SegmentationReport", "count_pixels", "report_segmentation"]


@dataclass(frozen=True)
class SegmentationReport(FiguresCard):
    """The figures of an evaluation on ``images`` images, as shares in [0, 1].

    ``iou``, ``accuracy`` and ``pixels`` are in the order of ``classes``. ``iou`` is the intersection over union of a
    class, None if it neither occurs nor is predicted. ``accuracy`` is the share of the pixels of a class that are
    predicted right, None if it does not occur. ``miou`` and ``macc`` are the means over classes without None, and
    ``aacc`` is the share of all pixels that are right. ``pixels`` are the numbers of pixels of the classes.
    """

    images: int
    miou: float
    aacc: float
    macc: float
    classes: tuple[str, ...]
    iou: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    pixels: tuple[int, ...]

    @property
    def figures(self) -> Mapping[str, float | None]:
        """The figures for all images together."""
        return {"miou": self.miou, "aacc": self.aacc, "macc": self.macc}

    @property
    def score(self) -> float:
        """The figure that the best checkpoint is chosen by."""
        return self.miou

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``."""
        return asdict(self)

    def show(self) -> None:
        """Print the figures and a table of classes; if they are many, of those with the lowest IoU."""
        total = sum(self.pixels)
        console.print(
            f"mIoU {self.miou:.2%}, aAcc {self.aacc:.2%}, mAcc {self.macc:.2%} on {self.images:,} images, "
            f"{total:,} pixels"
        )
        shares = {
            "IoU": self.iou,
            "accuracy": self.accuracy,
            "share of pixels": [count / total for count in self.pixels],
        }
        columns = {}
        for name, values in shares.items():
            columns[name] = list(map(_format_share, values))
        # without classes that neither occur nor are predicted, because they have no IoU
        known = {index: share for index, share in enumerate(self.iou) if share is not None}
        console.print(make_class_table(self.classes, columns, sorted(known, key=known.__getitem__), "IoU"))


def count_pixels(labels: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Count the pixels (C, C) of one image: the row is the true class, the column the predicted one.

    ``labels`` and ``predicted`` (H, W) are numbers of classes below C; ``labels`` may also be 255, which is not
    counted. Raises ValueError if their shapes differ.
    """
    if labels.shape != predicted.shape:
        raise ValueError(f"predicted: has the shape {predicted.shape}, and the labels {labels.shape}")
    valid = labels != IGNORED
    # pairs of classes as single numbers, which np.bincount counts in one pass
    pairs = labels[valid].astype(np.int64) * classes + predicted[valid]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def report_segmentation(counts: NDArray[np.int64], classes: Sequence[str], images: int) -> SegmentationReport:
    """Return the figures of ``counts`` (C, C), summed over images by :func:`count_pixels`; ValueError if all are 0."""
    if not counts.sum():
        raise ValueError("counts: there is no pixel to measure")
    correct = np.diag(counts)
    true = counts.sum(axis=1)
    predicted = counts.sum(axis=0)
    iou = _divide_or_nan(correct, true + predicted - correct)
    accuracy = _divide_or_nan(correct, true)
    return SegmentationReport(
        images=images,
        miou=float(np.nanmean(iou)),
        aacc=float(correct.sum() / counts.sum()),
        macc=float(np.nanmean(accuracy)),
        classes=tuple(classes),
        iou=_replace_nan(iou),
        accuracy=_replace_nan(accuracy),
        pixels=tuple(true.tolist()),
    )


def _divide_or_nan(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    shares = np.full(len(part), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _replace_nan(shares: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(share) else float(share) for share in shares)


def _format_share(share: float | None) -> str:
    return "" if share is None else f"{share:.3f}"
