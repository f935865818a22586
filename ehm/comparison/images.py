"""The labelled images that encoders are measured on, and their splits into training and test images.

All encoders are measured on the same splits. n is the number of images whose features are computed: the images of the
source, or of its two parts one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.config import MeasureConfig
from ehm.data import Source, open_source, stratified_folds
from ehm.data.folds import group_folds
from ehm.data.subset import Subset, find_groups, require_labels
from ehm.errors import ConfigError, DataError
from ehm.tasks.folds import require_same_classes

__all__ = ["LabelledImages", "Split", "draw_stratified", "open_images"]

_SEED = 0
"""Images are drawn in the same way every time, so that results of different commands can be compared."""


@dataclass(frozen=True)
class Split:
    """The numbers of the images to train on and of those to measure on, each in [0, n)."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class LabelledImages:
    """The images to measure on: ``parts`` of a source, their ``labels`` (n,), and the ``splits``.

    ``is_divided`` is true if the source has a validation part of its own, which makes one split. Otherwise each split
    holds out a fold; the first ``folds`` of them are the first division.
    """

    parts: tuple[Subset[Source], ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    splits: tuple[Split, ...]
    is_divided: bool
    description: str

    @property
    def test_share(self) -> float:
        """The number of test images of a split, divided by the number of its training images."""
        first = self.splits[0]
        return len(first.test) / len(first.train)


def open_images(measure: MeasureConfig) -> LabelledImages:
    """Open the labelled images that ``measure`` names, and split them.

    Raises DataError if they have no labels, or one class only, and ConfigError if a class has fewer images than there
    are folds.
    """
    source = open_source(measure.data, "train")
    labels = require_labels(source, measure.source)
    if source.split == "train":
        return _take_parts(measure, source, open_source(measure.data, "val"))
    chosen = draw_stratified(labels, measure.images)
    images = Subset(source, chosen, "all")
    _check_folds(images.labels, source.classes, measure)
    splits: list[Split] = []
    for repeat in range(measure.repeats):
        fold_of = _assign_folds(images, measure.folds, repeat)
        for fold in range(measure.folds):
            splits.append(Split(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)))
    times = f", {measure.repeats} times" if measure.repeats > 1 else ""
    description = (
        f"{len(images):,} images of {len(source.classes):,} classes from {measure.source}, which has no validation "
        f"part of its own: each of {measure.folds} stratified folds is held out once{times}"
    )
    return LabelledImages((images,), images.labels, source.classes, tuple(splits), False, description)


def draw_stratified(labels: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """Draw ``most`` of the images with ``labels`` (n,), the same share of each class; return their sorted indices.

    All indices are returned if ``most`` is None, or if there are no more images than that.
    """
    if most is None or most >= len(labels):
        return np.arange(len(labels))
    shuffled = np.random.default_rng(_SEED).permutation(len(labels))
    rank = np.empty(len(labels))
    for number in np.unique(labels):
        members = shuffled[labels[shuffled] == number]
        # evenly spaced from 0 to 1 over the images of each class, so that the lowest ranks have the same share of each
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    by_rank = np.lexsort((labels, rank))  # images of equal rank by their label, so that the order is always the same
    return np.sort(by_rank[:most])


def _assign_folds(images: Subset[Source], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each of ``images`` (n,), stratified by classes; groups of a table stay together."""
    groups = find_groups(images.source)
    if groups is None:
        return stratified_folds(images.labels, folds, seed=seed)
    _, numbers = np.unique(groups[images.indices], return_inverse=True)
    # group_folds takes equally good groups in the order of their numbers, which the seed therefore shuffles
    shuffled = np.random.default_rng(seed).permutation(int(numbers.max()) + 1)[numbers]
    try:
        is_of_class = images.labels[:, None] == np.arange(len(images.source.classes))
        fold_of = group_folds(is_of_class, shuffled, folds)
    except ValueError as error:
        raise ConfigError(f"folds: {error}") from None
    for number in np.flatnonzero(is_of_class.any(axis=0)).tolist():
        if len(np.unique(fold_of[is_of_class[:, number]])) < folds:
            raise ConfigError(
                f"folds {folds}: the images of class {images.source.classes[number]} are in too few groups for each "
                "fold to have some; set fewer folds"
            )
    return fold_of


def _take_parts(measure: MeasureConfig, source: Source, val_source: Source) -> LabelledImages:
    """Return the training and the validation part of a source that has both, as one split."""
    require_labels(val_source, measure.source)
    require_same_classes(source, val_source, measure.source)
    assert source.labels is not None
    assert val_source.labels is not None
    train = Subset(source, draw_stratified(source.labels, measure.images), "train")
    val = Subset(val_source, draw_stratified(val_source.labels, measure.test_images), "val")
    _check_training(train, measure)
    labels = np.concatenate([train.labels, val.labels])
    split = Split(np.arange(len(train)), np.arange(len(train), len(labels)))
    description = (
        f"the own parts of {measure.source}, {len(source.classes):,} classes: {len(train):,} of its "
        f"{len(source):,} training images, measured on {len(val):,} of its {len(val_source):,} validation images"
    )
    return LabelledImages((train, val), labels, source.classes, (split,), True, description)


def _check_training(train: Subset[Source], measure: MeasureConfig) -> None:
    """Raise DataError if all training images are of one class."""
    if len(np.unique(train.labels)) < 2:
        raise DataError(f"data.source {measure.source}: its training images are of one class only; two are needed")


def _check_folds(labels: NDArray[np.int64], classes: tuple[str, ...], measure: MeasureConfig) -> None:
    """Raise an error if there are too few images of a class for each fold to have one.

    A class without any image is not measured, and no error.
    """
    counts = np.bincount(labels, minlength=len(classes))
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise DataError(f"data.source {measure.source}: all of its images are of one class; two are needed")
    rarest = present[np.argmin(counts[present])]
    if counts[rarest] < measure.folds:
        remedy = "add images of it, or leave the class out (classes)"
        if counts[rarest] > 1:
            remedy = f"set folds={counts[rarest]}, or {remedy}"
        raise ConfigError(
            f"folds {measure.folds}: class {classes[rarest]} of {measure.source} has {counts[rarest]} of the images, "
            f"and each fold needs one; {remedy}"
        )
