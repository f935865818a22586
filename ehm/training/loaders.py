"""Make the loaders of all loops: shuffled batches to train on, or every image once, in order, to measure on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes
from ehm.config import TaskConfig, TokenizerConfig, TrainConfig
from ehm.data import Loader, Source, Transform
from ehm.data.sources.mixture import MixedSource

__all__ = ["make_eval_loader", "make_single_image_loader", "make_train_loader"]

Config = TaskConfig | TokenizerConfig | TrainConfig


def make_train_loader(
    source: Source,
    transform: Transform,
    config: Config,
    processes: Processes,
    *,
    views: int = 1,
    subset: NDArray[np.int64] | None = None,
    chances: NDArray[np.float64] | None = None,
) -> Loader:
    """Return a loader of batches to train on, in a new order every epoch; each process gets a share of each batch.

    If images are masked in several ``views``, ``optim.batch_size`` counts every view. With ``chances`` images are drawn
    with these probabilities. If the source is a mixture, the weights of its sources set how often their images occur.
    """
    if isinstance(source, MixedSource):
        indices = np.arange(len(source)) if subset is None else subset
        if chances is None:
            subset = source.repeat_by_weight(indices)
        else:
            chances = source.weigh_chances(indices, chances)
    return Loader(
        source,
        transform,
        batch_size=config.optim.batch_size // views,
        seed=config.run.seed,
        shuffle=True,
        drop_last=True,  # a short batch would have the learning rate of a full one
        workers=config.data.workers,
        strict=config.data.strict,
        subset=subset,
        chances=chances,
        rank=processes.rank,
        world_size=processes.size,
    )


def make_eval_loader(
    source: Source,
    transform: Transform,
    config: Config,
    processes: Processes = ALONE,
    *,
    most: int | None = None,
    subset: NDArray[np.int64] | None = None,
) -> Loader:
    """Return a loader of every image once, in order; each process gets a share of them.

    A batch has as many images as pass through the device at once in training, because they fit into its memory, but at
    most ``most``.
    """
    images_at_once = config.optim.batch_size // config.optim.accumulate // processes.size
    if most is not None:
        images_at_once = min(most, images_at_once)
    return _make_ordered_loader(source, transform, config, processes, max(1, images_at_once), subset)


def make_single_image_loader(
    source: Source,
    transform: Transform,
    config: Config,
    processes: Processes,
    *,
    subset: NDArray[np.int64] | None = None,
) -> Loader:
    """Return a loader of every image once, in order, one at a time for each process: for images that differ in size."""
    return _make_ordered_loader(source, transform, config, processes, 1, subset)


def _make_ordered_loader(
    source: Source,
    transform: Transform,
    config: Config,
    processes: Processes,
    images_at_once: int,
    subset: NDArray[np.int64] | None,
) -> Loader:
    """Return a loader of every image once, in order, with ``images_at_once`` for each process."""
    return Loader(
        source,
        transform,
        batch_size=images_at_once * processes.size,
        seed=0,  # only the stand-ins for unreadable images are drawn
        shuffle=False,
        drop_last=False,
        workers=config.data.workers,
        strict=config.data.strict,
        subset=subset,
        rank=processes.rank,
        world_size=processes.size,
    )
