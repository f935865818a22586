"""Figures of a segmentation, as ADE20K's benchmark and mmsegmentation count them: over the pixels of the whole set.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ehm.console import console
from ehm.data.sources.masks import IGNORED

__all__ = ["SegmentationReport", "count_pixels", "overlap"]

_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class SegmentationReport:
    """What an evaluation says of ``images``. Shares are in [0, 1]; per-class figures follow the order of ``classes``.

    ``iou`` is intersection over union of a class, None where it neither occurs nor is predicted; ``accuracy`` the
    share of its pixels that were found, None where it does not occur. ``miou`` and ``macc`` are the means of those
    that are not None, ``aacc`` is the share of all pixels that are right. ``pixels`` counts those of each class.
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
    def figures(self) -> dict[str, float | None]:
        """Those for the whole."""
        return {"miou": self.miou, "aacc": self.aacc, "macc": self.macc}

    @property
    def score(self) -> float:
        """What the best checkpoint is chosen by."""
        return self.miou

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def show(self) -> None:
        """Print the whole, and each class, of many those of the lowest intersection over union."""
        console.print(
            f"mIoU {self.miou:.2%}, aAcc {self.aacc:.2%}, mAcc {self.macc:.2%} on {self.images:,} images, "
            f"{sum(self.pixels):,} pixels"
        )
        few = len(self.classes) <= _SHOWN_CLASSES
        known = [index for index, value in enumerate(self.iou) if few or value is not None]
        order = known if few else sorted(known, key=lambda index: self.iou[index] or 0)[:_SHOWN_CLASSES]
        table = Table(title=None if few else f"the {_SHOWN_CLASSES} classes of lowest IoU")
        table.add_column("class")
        for name in ("IoU", "accuracy", "share of pixels"):
            table.add_column(name, justify="right")
        for index in order:
            shares = (self.iou[index], self.accuracy[index], self.pixels[index] / sum(self.pixels))
            table.add_row(self.classes[index], *("" if share is None else f"{share:.3f}" for share in shares))
        console.print(table)


def count_pixels(labels: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels (C, C) of one image: the row is the true class, the column the predicted one; ignored ones are left out.

    Both are (H, W) of classes below C, ``labels`` also 255. ValueError where their shapes differ.
    """
    if labels.shape != predicted.shape:
        raise ValueError(f"predicted: has the shape {predicted.shape}, and the labels {labels.shape}")
    valid = labels != IGNORED
    pairs = labels[valid].astype(np.int64) * classes + predicted[valid]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def overlap(counts: NDArray[np.int64], classes: Sequence[str], images: int) -> SegmentationReport:
    """The figures of ``counts`` (C, C), which :func:`count_pixels` gave, summed over images; ValueError for none."""
    if not counts.sum():
        raise ValueError("counts: there is no pixel to measure")
    right, true, called = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    iou, accuracy = _share(right, true + called - right), _share(right, true)
    return SegmentationReport(
        images=images,
        miou=float(np.nanmean(iou)),
        aacc=float(right.sum() / counts.sum()),
        macc=float(np.nanmean(accuracy)),
        classes=tuple(classes),
        iou=_plain(iou),
        accuracy=_plain(accuracy),
        pixels=tuple(true.tolist()),
    )


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    shares = np.full(len(part), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _plain(shares: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(share) else float(share) for share in shares)
