"""The images that a pretraining run is measured on: the same ones every time, from every class alike.

Shapes: n images.
"""

from __future__ import annotations

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
"""Parts of the images, each of which is classed by the others."""
_IMAGES_OF_A_CLASS = 10
"""Images of a class to aim at, if the source has so many classes that some have to be left out."""
_SEED = 0
"""The same images whatever ``run.seed``, so that runs with several seeds compare."""


@dataclass(frozen=True)
class WatchedImages:
    """Images to measure on. ``labels`` (n,) count the ``classes`` that are measured, None if there are no labels.

    ``folds`` (n,) is the part that each image belongs to; the classes are spread evenly over the parts.
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
        """The share of the most frequent class: the accuracy of whoever always answers it; 0 without labels."""
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
        """Return which images these are, in words."""
        text = f"{len(self):,} images of {self.name} ({self.subset.title})"
        if self.labels is None:
            return f"{text} without labels"
        return f"{text} in {self.classes:,} classes, the largest of which has {self.largest_class:.0%}"


def open_watched_images(config: TrainConfig, training: Source, held_out: Source | None) -> WatchedImages:
    """Open the images that ``config.watch`` names, or take labelled ones of ``held_out``, else those of ``training``.

    Raises DataError if there are none, ConfigError if a figure is asked for that needs labels and there are none.
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
    # of all classes: those of data.classes belong to the other source
    data = data.model_copy(update={"source": name, "layout": layout, "classes": None})
    try:
        source = open_source(data, "train")
        return open_source(data, "val") if source.split == "train" else source
    except DataError as error:
        # it is opened by the keys of data, and has keys of its own
        raise DataError(str(error).replace("data.", "watch.")) from None


def choose_images(source: Source, name: str, most: int) -> WatchedImages:
    """Choose at most ``most`` images of ``source``, called ``name``: of each class as large a share as it has in all.

    Classes with fewer images than there are folds are left out. Of very many classes some are chosen at random, so that
    each has about ten images: with one or two of each, nothing can be learnt. With fewer than two classes left, the
    images count as having no labels.
    """
    rng = np.random.default_rng(_SEED)
    if source.labels is not None:
        counts = np.bincount(source.labels, minlength=len(source.classes))
        classes = np.flatnonzero(counts >= FOLDS)
        most_classes = max(2, most // _IMAGES_OF_A_CLASS)
        if len(classes) > most_classes:
            classes = np.sort(rng.permutation(classes)[:most_classes])
        if len(classes) >= 2:
            candidates = rng.permutation(np.flatnonzero(np.isin(source.labels, classes)))
            by_class = candidates[np.argsort(source.labels[candidates], kind="stable")]
            selected = np.sort(_spread(by_class, most))
            labels = np.searchsorted(classes, source.labels[selected])
            folds = stratified_folds(labels, FOLDS, _SEED)
            return WatchedImages(name, Subset(source, selected, source.split), labels, folds, len(classes))
    selected = np.sort(rng.permutation(len(source))[:most])
    return WatchedImages(name, Subset(source, selected, source.split))


def _spread(indices: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of ``indices``, taken at equal distances."""
    count = min(most, len(indices))
    return indices[np.arange(count) * len(indices) // count]
