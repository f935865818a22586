"""Hold out a fold of a source that has no validation part of its own."""

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
"""Not ``run.seed``, so that runs with different seeds are measured on the same images."""


def stratify(labels: ArrayLike, config: TaskConfig) -> NDArray[np.int64]:
    """Return the fold of each image (n,); all folds have about as many images of each class in ``labels`` (n,)."""
    try:
        return stratified_folds(labels, config.folds, seed=_SEED)
    except ValueError as error:
        raise ConfigError(f"folds: {error}") from None


def stratify_source(source: Source, labels: NDArray[np.int64] | None, config: TaskConfig) -> NDArray[np.int64]:
    """Return the fold of each image of ``source`` (n,), stratified by ``labels`` (n,).

    ``labels`` is None if images have several labels; folds are then stratified by the combinations of labels. Images
    of one group of a table are never in two folds.
    """
    targets = find_targets(source)
    groups = find_groups(source)
    if labels is None:
        assert targets is not None
        # with a column of ones, so that folds are also of about equal size
        counts = np.column_stack([targets, np.ones(len(targets), bool)])
        combinations = np.packbits(targets, axis=1)
        labels = np.unique(combinations, axis=0, return_inverse=True)[1].ravel()
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
    # the remainders of a permutation, so that sizes of folds differ by one at most
    return np.random.default_rng(_SEED).permutation(count) % config.folds


def describe_fold(config: TaskConfig) -> str:
    """Return the name of the fold that is held out."""
    return f"fold {config.fold} of {config.folds}"


def divide_by_fold(
    source: S, fold_of: NDArray[np.int64], config: TaskConfig, trainable: NDArray[np.bool_] | None = None
) -> tuple[Subset[S], Subset[S]]:
    """Return the images to train on, of all folds but ``config.fold``, and the images of that fold, to measure on.

    With the mask ``trainable`` (n,), only the images in it are trained on.
    """
    is_held_out = fold_of == config.fold
    # images that are not trainable are measured: an image without objects shows false detections
    is_trained = ~is_held_out
    if trainable is not None:
        is_trained &= trainable
    title = describe_fold(config)
    train = Subset(source, np.flatnonzero(is_trained), f"all but {title}")
    return train, Subset(source, np.flatnonzero(is_held_out), title)


def require_same_classes(train: Source, val: Source, source_name: str, what: str = "classes") -> None:
    """Raise DataError if the two parts of a source differ in their classes or in the order of these."""
    if val.classes != train.classes:
        raise DataError(f"data.source {source_name}: train and val do not have the same {what}")
