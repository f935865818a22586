"""Figures of a segmentation, as ADE20K's benchmark and mmsegmentation count them: over the pixels of the whole set.

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
    """The figures of an evaluation on ``images``. Shares are in [0, 1]; those of classes have the order of ``classes``.

    ``iou`` is the intersection over union of a class, None if it neither occurs nor is predicted; ``accuracy`` the
    share of its pixels that were found, None if it does not occur. ``miou`` and ``macc`` are the means of those that
    are not None, ``aacc`` is the share of all pixels that are right. ``pixels`` counts those of each class.
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
        """Print the figures, and each class, of many those of the lowest intersection over union."""
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
        # classes that neither occur nor are predicted are no bad ones
        known = {index: share for index, share in enumerate(self.iou) if share is not None}
        console.print(make_class_table(self.classes, columns, sorted(known, key=known.__getitem__), "IoU"))


def count_pixels(labels: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Return the pixels (C, C) of one image: the row is the true class, the column the predicted one.

    Both are (H, W) of classes below C; ``labels`` may also be 255, which is not counted. Raises ValueError if their
    shapes differ.
    """
    if labels.shape != predicted.shape:
        raise ValueError(f"predicted: has the shape {predicted.shape}, and the labels {labels.shape}")
    valid = labels != IGNORED
    # a number for each pair of classes, so that one count serves for all pixels
    pairs = labels[valid].astype(np.int64) * classes + predicted[valid]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def report_segmentation(counts: NDArray[np.int64], classes: Sequence[str], images: int) -> SegmentationReport:
    """Return the figures of ``counts`` (C, C), summed over images by :func:`count_pixels`; ValueError if all are 0."""
    if not counts.sum():
        raise ValueError("counts: there is no pixel to measure")
    # counted over the pixels of all images, as the benchmark does, and not averaged over images
    right = np.diag(counts)
    true = counts.sum(axis=1)
    called = counts.sum(axis=0)
    iou = _divide_or_nan(right, true + called - right)
    accuracy = _divide_or_nan(right, true)
    return SegmentationReport(
        images=images,
        miou=float(np.nanmean(iou)),
        aacc=float(right.sum() / counts.sum()),
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
