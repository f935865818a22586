"""A fold of a source that is held out, if it has no validation part of its own."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehm.config import TaskConfig
from ehm.data import Source, stratified_folds
from ehm.data.folds import group_folds
from ehm.data.subset import Subset, find_groups, find_targets
from ehm.errors import ConfigError, DataError

__all__ = ["describe_fold", "divide_by_fold", "draw_folds", "require_same_classes", "stratify", "stratify_source"]

S = TypeVar("S", bound=Source)
_SEED = 0
"""Folds are the same whatever ``run.seed``, so that runs with several seeds compare."""


def stratify(labels: ArrayLike, config: TaskConfig) -> NDArray[np.int64]:
    """Return the fold of each image (n,), each with about equally many images of each class: ``labels`` (n,)."""
    try:
        return stratified_folds(labels, config.folds, seed=_SEED)
    except ValueError as error:
        raise ConfigError(f"folds: {error}") from None


def stratify_source(source: Source, labels: NDArray[np.int64] | None, config: TaskConfig) -> NDArray[np.int64]:
    """Return the fold of each image of ``source`` (n,), stratified by ``labels`` (n,); None takes its several labels.

    A group of a table stays in one fold. Without groups, several labels are stratified by their combinations.
    """
    targets = find_targets(source)
    groups = find_groups(source)
    if labels is None:
        assert targets is not None
        counts = np.column_stack([targets, np.ones(len(targets), bool)])  # and the images, so that folds are of a size
        labels = np.unique(np.packbits(targets, axis=1), axis=0, return_inverse=True)[1].ravel()
    else:
        counts = labels[:, None] == np.arange(len(source.classes))
    if groups is None:
        return stratify(labels, config)
    try:
        return group_folds(counts, groups, config.folds)
    except ValueError as error:
        raise ConfigError(f"folds: {error}") from None


def draw_folds(count: int, config: TaskConfig) -> NDArray[np.int64]:
    """Return the fold of each of ``count`` images or classes, drawn at random."""
    # dealt out after a shuffle, so that folds differ in size by one at most
    return np.random.default_rng(_SEED).permutation(count) % config.folds


def describe_fold(config: TaskConfig) -> str:
    """Return the name of the fold that is held out."""
    return f"fold {config.fold} of {config.folds}"


def divide_by_fold(
    source: S, fold_of: NDArray[np.int64], config: TaskConfig, trainable: NDArray[np.bool_] | None = None
) -> tuple[Subset[S], Subset[S]]:
    """Return the images of all folds but ``config.fold``, to train on, and those of it, to measure on.

    Of the former only ``trainable`` ones (n,) are taken, all if left out.
    """
    is_held_out = fold_of == config.fold
    # what is not trainable is measured all the same: an image without objects shows false detections
    is_trained = ~is_held_out
    if trainable is not None:
        is_trained &= trainable
    title = describe_fold(config)
    train = Subset(source, np.flatnonzero(is_trained), f"all but {title}")
    return train, Subset(source, np.flatnonzero(is_held_out), title)


def require_same_classes(train: Source, val: Source, source_name: str, what: str = "classes") -> None:
    """Raise DataError if the two parts of a source have other classes, or have them in another order."""
    if val.classes != train.classes:
        raise DataError(f"data.source {source_name}: train and val do not have the same {what}")
