"""Collect the predictions of a model for all images of a loader from all processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes
from ehm.data import Batch, Loader
from ehm.progress_bar import track
from ehm.training.rows import Predict, collect_rows

__all__ = ["collect_indexed_predictions", "collect_predictions", "track_batches"]


def track_batches(loader: Loader, title: str) -> Iterator[Batch]:
    """Yield the batches of one epoch, with a progress bar if there is a ``title``."""
    steps = loader.steps_per_epoch
    # measurements during training have no title, because the screen shows the bar of the run
    yield from track(loader.batches(0, steps), title, steps, hidden=not title)


def collect_predictions(
    predict: Predict, loader: Loader, title: str = "", processes: Processes = ALONE
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the labels (n,) and the predictions (n, ...) for the images in the loaders of all processes.

    Images that cannot be read are left out.
    """
    _, labels, rows = collect_indexed_predictions(predict, loader, title, processes)
    return labels, rows


def collect_indexed_predictions(
    predict: Predict, loader: Loader, title: str = "", processes: Processes = ALONE
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the sorted indices (n,) of images in their source, their labels (n,) and their predictions (n, ...)."""
    indices, rows = collect_rows(predict, track_batches(loader, title), processes)
    assert loader.labels is not None
    return indices, loader.labels[indices], rows
