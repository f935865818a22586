"""Mean, deviation and range of each channel, added up image by image.

Shapes: H x W pixels of C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChannelMoments", "measure_channels"]


@dataclass(frozen=True)
class ChannelMoments:
    """The number, sum, sum of squares, least and largest of the values of each channel: (C,) each."""

    count: NDArray[np.int64]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    least: NDArray[np.float64]
    largest: NDArray[np.float64]

    def __add__(self, other: ChannelMoments) -> ChannelMoments:
        """Return the moments of both sets of values together."""
        return ChannelMoments(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            np.minimum(self.least, other.least),
            np.maximum(self.largest, other.largest),
        )

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each channel."""
        return self.total / np.maximum(self.count, 1)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Standard deviation of each channel, over all pixels of all images."""
        variance = self.squares / np.maximum(self.count, 1) - self.mean**2
        return np.sqrt(np.maximum(variance, 0))


def measure_channels(values: NDArray[Any], is_missing: NDArray[np.bool_] | None = None) -> ChannelMoments:
    """Return the moments of one image (H, W, C); values that are missing do not count."""
    rows = values.reshape(-1, values.shape[2]).astype(np.float64)
    if is_missing is None or not is_missing.any():
        count = np.full(rows.shape[1], len(rows))
        return ChannelMoments(count, rows.sum(axis=0), np.square(rows).sum(axis=0), rows.min(axis=0), rows.max(axis=0))
    missing = is_missing.reshape(rows.shape)
    present = np.where(missing, 0, rows)
    return ChannelMoments(
        (~missing).sum(axis=0),
        present.sum(axis=0),
        np.square(present).sum(axis=0),
        np.where(missing, np.inf, rows).min(axis=0),
        np.where(missing, -np.inf, rows).max(axis=0),
    )
