"""The images that a pretraining run is measured on: the same ones every time, with the same share of each class.

Shapes: n images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.config import PretrainData, TrainConfig
from ehm.config.sources import Layout
from ehm.data import Source, open_source, stratified_folds
from ehm.data.subset import Subset
from ehm.errors import ConfigError, DataError

__all__ = ["FOLDS", "WatchedImages", "choose_images", "open_watched_images"]

FOLDS = 5
"""Parts of the images; each part is classified by the others."""
_IMAGES_PER_CLASS = 10
"""Images that each class should have, if the source has so many classes that some are left out for it."""
_DATA_KEY = re.compile(r"(?<![\w/.])data\.(source|layout)\b")
"""A key in the message of an error that the user has set as a key of ``watch``; not the end of a path."""
_SEED = 0
"""Not ``run.seed``, so that runs with different seeds are measured on the same images."""


@dataclass(frozen=True)
class WatchedImages:
    """The images of ``subset`` to measure on, from the source ``name``.

    ``labels`` (n,) are in [0, ``classes``), numbered anew because classes may be left out; None if there are no labels.
    ``folds`` (n,) is the part that each image belongs to; the images of each class are spread evenly over the parts.
    """

    name: str
    subset: Subset[Source]
    labels: NDArray[np.int64] | None = None
    folds: NDArray[np.int64] | None = None
    classes: int = 0

    def __len__(self) -> int:
        return len(self.subset)

    @property
    def largest_class(self) -> float:
        """The share of the most frequent class, which is the accuracy of always answering it; 0 without labels."""
        if self.labels is None:
            return 0.0
        return float(np.bincount(self.labels).max() / len(self.labels))

    def labels_at(self, places: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the labels of the images at ``places`` (m,) among these: (m,), None if there are no labels."""
        return None if self.labels is None else self.labels[places]

    def folds_at(self, places: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the folds of the images at ``places``, as :meth:`labels_at`."""
        return None if self.folds is None else self.folds[places]

    def describe(self) -> str:
        """Return the number of images, their source and their classes in words."""
        text = f"{len(self):,} images of {self.name} ({self.subset.title})"
        if self.labels is None:
            return f"{text} without labels"
        return f"{text} in {self.classes:,} classes, the largest of which has {self.largest_class:.0%}"


def open_watched_images(config: TrainConfig, training: Source, held_out: Source | None) -> WatchedImages:
    """Open the images that ``config.watch`` names, by default ``held_out`` if it has labels, otherwise ``training``.

    Raises DataError if there are no images, and ConfigError if the chosen figure needs labels and there are none.
    """
    watch = config.watch
    if watch.source is None:
        name = config.data.source
        source = training if held_out is None or held_out.labels is None else held_out
    else:
        name = watch.source
        source = _open_named_images(config.data, watch.source, watch.layout)
    chosen = choose_images(source, name, watch.images)
    if watch.figure in ("knn", "linear") and chosen.labels is None:
        raise ConfigError(
            f"watch.figure {watch.figure}: needs labels, and {name} has none to measure by; name a folder of "
            "classes as watch.source, or set watch.figure=rankme"
        )
    return chosen


def _open_named_images(data: PretrainData, name: str, layout: Layout) -> Source:
    """Open the source ``name``: its validation part if it has one, else all of it."""
    # without data.sources, which are other images, and data.classes, which select classes of theirs
    changes = {"source": name, "layout": layout, "classes": None, "sources": (), "weight": 1.0}
    data = data.model_copy(update=changes)
    try:
        source = open_source(data, "train")
        return open_source(data, "val") if source.split == "train" else source
    except DataError as error:
        raise DataError(_DATA_KEY.sub(r"watch.\1", str(error))) from None


def choose_images(source: Source, name: str, most: int) -> WatchedImages:
    """Choose at most ``most`` images of ``source``, called ``name``, so that classes keep their shares.

    Classes with fewer images than there are folds are left out. If there are very many classes, some are chosen at
    random, so that each has about ten images: k-NN and a linear probe learn nothing from one or two. If fewer than two
    classes are left, the images are treated as unlabelled.
    """
    rng = np.random.default_rng(_SEED)
    if source.labels is not None:
        counts = np.bincount(source.labels, minlength=len(source.classes))
        classes = np.flatnonzero(counts >= FOLDS)
        most_classes = max(2, most // _IMAGES_PER_CLASS)
        if len(classes) > most_classes:
            classes = np.sort(rng.permutation(classes)[:most_classes])
        if len(classes) >= 2:
            candidates = rng.permutation(np.flatnonzero(np.isin(source.labels, classes)))
            # images at equal distances in the order of classes: each class keeps its share
            by_class = candidates[np.argsort(source.labels[candidates], kind="stable")]
            selected = np.sort(_thin_out(by_class, most))
            labels = np.searchsorted(classes, source.labels[selected])
            folds = stratified_folds(labels, FOLDS, _SEED)
            return WatchedImages(name, Subset(source, selected, source.split), labels, folds, len(classes))
    selected = np.sort(rng.permutation(len(source))[:most])
    return WatchedImages(name, Subset(source, selected, source.split))


def _thin_out(indices: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of ``indices``, taken at equal distances."""
    count = min(most, len(indices))
    return indices[np.arange(count) * len(indices) // count]
