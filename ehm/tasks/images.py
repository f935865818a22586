"""Labelled images for the tasks: which to train on, which to measure on, and a classifier's answers to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ehm.backends.base import ALONE, Processes
from ehm.config import FinetuneConfig, TaskConfig
from ehm.console import console
from ehm.data import EvalTransform, Loader, Source, Transform, open_source, stratified_folds
from ehm.data.subset import Subset, require_labels
from ehm.errors import ConfigError, DataError

__all__ = ["collect", "eval_loader", "split", "train_loader"]

Predict = Callable[[Any], NDArray[np.float32]]


def split(config: FinetuneConfig, train: Source | None = None) -> tuple[Subset, Subset]:
    """What to train on and what to measure on: the source's own parts, or ``fold`` of ``folds`` held out.

    ``train`` is the source if it is open already. The folds are stratified and always the same, whatever ``run.seed``,
    so that runs with several seeds compare. Raises DataError if there are no labels, or if training and validation
    disagree about the classes.
    """
    train = open_source(config.data, "train") if train is None else train
    labels = require_labels(train, config.data.source)
    if train.split == "train":
        val = open_source(config.data, "val")
        require_labels(val, config.data.source)
        if val.classes != train.classes:
            raise DataError(f"data.source {config.data.source}: train and val do not have the same classes")
        return Subset(train, None, "train"), Subset(val, None, "val")
    try:
        fold_of = stratified_folds(labels, config.folds, seed=0)
    except ValueError as error:
        raise ConfigError(f"folds: {error}") from None
    title = f"fold {config.fold} of {config.folds}"
    held_out = fold_of == config.fold
    return Subset(train, np.flatnonzero(~held_out), f"all but {title}"), Subset(train, np.flatnonzero(held_out), title)


def train_loader(part: Subset, transform: Transform, config: TaskConfig, processes: Processes) -> Loader:
    """Batches of ``part`` to train on, in a new order every epoch; a share of each for each of ``processes``."""
    return Loader(
        part.source,
        transform,
        batch_size=config.optim.batch_size,
        seed=config.run.seed,
        shuffle=True,
        drop_last=True,
        workers=config.data.workers,
        strict=config.data.strict,
        subset=part.selected,
        rank=processes.rank,
        world_size=processes.size,
    )


def eval_loader(part: Subset, transform: EvalTransform, config: FinetuneConfig, processes: Processes = ALONE) -> Loader:
    """Every image of ``part`` once, in order, as ``transform`` crops it; a share of them for each of ``processes``."""
    return Loader(
        part.source,
        transform,
        batch_size=max(1, min(256, config.optim.batch_size // config.optim.accumulate // processes.size))
        * processes.size,
        seed=0,
        shuffle=False,
        drop_last=False,
        workers=config.data.workers,
        strict=config.data.strict,
        subset=part.selected,
        rank=processes.rank,
        world_size=processes.size,
    )


def collect(
    predict: Predict, loader: Loader, title: str = "", processes: Processes = ALONE
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels (n,) and ``predict``'s rows (n, …) for the images of all ``processes``' loaders, with a progress bar.

    A file that cannot be read is left out: the loader puts another image in its place, which counts once only.
    """
    indices, labels, rows = [], [], []
    batches = loader.batches(0, loader.steps_per_epoch)
    hidden = not (title and console.is_terminal)
    for batch in track(batches, title, loader.steps_per_epoch, console=console, disable=hidden):
        assert batch.labels is not None
        rows.append(predict(batch.images))
        indices.append(batch.indices)
        labels.append(batch.labels)
    shares = processes.gather_values([np.concatenate(parts) for parts in (indices, labels, rows)])
    numbers, truth, answers = (np.concatenate(parts) for parts in zip(*shares, strict=True))
    _, once = np.unique(numbers, return_index=True)
    return truth[once], answers[once]
