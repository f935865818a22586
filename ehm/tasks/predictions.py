"""The predictions of a model for all images of a loader, gathered from all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ehm.backends.base import ALONE, Processes
from ehm.console import console
from ehm.data import Batch, Loader

__all__ = ["collect_predictions", "track_batches"]

Predict = Callable[[Any], NDArray[np.float32]]
"""Makes a row for each image of a batch: (B, ...)."""


def track_batches(loader: Loader, title: str) -> Iterator[Batch]:
    """Yield the batches of one epoch, with a progress bar if there is a ``title`` and a terminal to draw it on."""
    steps = loader.steps_per_epoch
    # measurements during training have no title: the bar of the run is on the screen
    is_hidden = not (title and console.is_terminal)
    yield from track(loader.batches(0, steps), title, steps, console=console, disable=is_hidden)


def collect_predictions(
    predict: Predict, loader: Loader, title: str = "", processes: Processes = ALONE
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the labels (n,) and the rows (n, ...) that ``predict`` makes of the images of all processes' loaders.

    A file that cannot be read is left out: the loader puts another image in its place, which counts once only.
    """
    indices = []
    labels = []
    rows = []
    for batch in track_batches(loader, title):
        assert batch.labels is not None
        indices.append(batch.indices)
        labels.append(batch.labels)
        rows.append(predict(batch.images))
    # concatenated before they are sent: one message of three arrays for each process
    share = (np.concatenate(indices), np.concatenate(labels), np.concatenate(rows))
    all_indices, all_labels, all_rows = zip(*processes.gather_values(share), strict=True)
    # sorted by index too, so that the order does not depend on the number of processes
    _, once = np.unique(np.concatenate(all_indices), return_index=True)
    return np.concatenate(all_labels)[once], np.concatenate(all_rows)[once]
