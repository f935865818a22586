"""Compute a row of numbers for each image, such as features or logits, and gather the rows of all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes
from ehm.data import Batch

__all__ = ["Predict", "collect_rows"]

Predict = Callable[[Any], NDArray[np.float32]]
"""Computes a row for each image of a batch: (B, ...)."""


def collect_rows(
    predict: Predict, batches: Iterable[Batch], processes: Processes = ALONE
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the sorted indices (n,) of the images in the ``batches`` of all processes, and their rows (n, ...).

    An image that cannot be read has no row: the loader reads another image in its place, whose second row is dropped.
    All processes call this.
    """
    indices = []
    rows = []
    for batch in batches:
        indices.append(batch.indices)
        rows.append(predict(batch.images))
    # concatenated before they are sent: one message of two arrays for each process
    share = (np.concatenate(indices), np.concatenate(rows))
    all_indices, all_rows = zip(*processes.gather_values(share), strict=True)
    # np.unique also sorts, so that the order does not depend on the number of processes
    unique_indices, positions = np.unique(np.concatenate(all_indices), return_index=True)
    return unique_indices, np.concatenate(all_rows)[positions]
