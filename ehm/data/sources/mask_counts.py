"""Count how often each value occurs in masks, and find masks of 0 and 255 that were meant as two classes."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.masks import IGNORED

__all__ = ["MaskCounts", "explain_255"]

VALUES = 256
"""The values that a pixel of a mask may have."""


class MaskCounts:
    """Counts of the masks that hold each value (256,), of its pixels (256,), and of the masks that hold 1 beside 255.

    Several threads may add masks.
    """

    def __init__(self) -> None:
        self.masks: NDArray[np.int64] = np.zeros(VALUES, np.int64)
        self.pixels: NDArray[np.int64] = np.zeros(VALUES, np.int64)
        self.with_one_and_255 = 0
        self._lock = Lock()

    def __getstate__(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        return self.masks, self.pixels, self.with_one_and_255

    def __setstate__(self, state: tuple[NDArray[np.int64], NDArray[np.int64], int]) -> None:
        self.masks, self.pixels, self.with_one_and_255 = state
        self._lock = Lock()

    def add(self, labels: NDArray[np.uint8]) -> None:
        """Count a mask (H, W)."""
        counts = np.bincount(labels.ravel(), minlength=VALUES)
        # adding to an array is no single step
        with self._lock:
            self.pixels += counts
            self.masks += counts > 0
            self.with_one_and_255 += bool(counts[1] and counts[IGNORED])

    def merge(self, others: Sequence[MaskCounts]) -> MaskCounts:
        """Return the sum of this one and ``others``."""
        total = MaskCounts()
        for counts in (self, *others):
            total.masks += counts.masks
            total.pixels += counts.pixels
            total.with_one_and_255 += counts.with_one_and_255
        return total


def explain_255(counts: MaskCounts, classes: Sequence[str]) -> str:
    """Return what is wrong if masks of two classes seem to write the second one as 255; nothing if they do not.

    255 is what neither trains nor counts. It may lie around objects, beside 1; masks that hold 255 and never 1 are
    those of tools that write an object as white.
    """
    if len(classes) != 2 or not counts.masks[IGNORED]:
        return ""
    remedy = f"write {classes[1]} as 1 instead of {IGNORED}, or set data.check=false if {IGNORED} is to be ignored"
    if not counts.pixels[1]:
        return (
            f"{counts.masks[IGNORED]:,} of its masks hold the value {IGNORED} and none holds 1; {IGNORED} is ignored "
            f"and is no class: {remedy}"
        )
    if not counts.with_one_and_255:
        return (
            f"{counts.masks[IGNORED]:,} of its masks hold {IGNORED}, {counts.masks[1]:,} others hold 1, and none holds "
            f"both; {IGNORED} is ignored and is no class: {remedy}"
        )
    return ""
