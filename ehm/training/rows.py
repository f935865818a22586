"""A row for each image, as a model gives it, gathered from all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes
from ehm.data import Batch

__all__ = ["Predict", "collect_rows"]

Predict = Callable[[Any], NDArray[np.float32]]
"""Makes a row for each image of a batch: (B, ...)."""


def collect_rows(
    predict: Predict, batches: Iterable[Batch], processes: Processes = ALONE
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the indices (n,) of the images of all processes' ``batches``, rising, and what ``predict`` makes of them.

    A file that cannot be read is left out: the loader puts another image in its place, which counts once only. All
    processes call this.
    """
    indices = []
    rows = []
    for batch in batches:
        indices.append(batch.indices)
        rows.append(predict(batch.images))
    # concatenated before they are sent: one message of two arrays for each process
    share = (np.concatenate(indices), np.concatenate(rows))
    all_indices, all_rows = zip(*processes.gather_values(share), strict=True)
    # sorted by index too, so that the order does not depend on the number of processes
    once, places = np.unique(np.concatenate(all_indices), return_index=True)
    return once, np.concatenate(all_rows)[places]
