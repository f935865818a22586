"""Weights of classes in the loss, and probabilities of images to be drawn, against unbalanced classes.

Shapes: n images, C classes. ``counts`` (C,) are the numbers of training images of each class, or with each label.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.config import FinetuneConfig
from ehm.errors import ConfigError

__all__ = ["balance_images", "balance_labelled_images", "weigh_classes", "weigh_positives"]


def weigh_classes(counts: NDArray[np.int64], config: FinetuneConfig) -> NDArray[np.float32] | None:
    """Return the weight of each class (C,) in the cross entropy; None if all are 1.

    With ``balanced``, class c with n_c of n images has the weight n / (C n_c), as in scikit-learn; their mean over the
    images is 1.
    """
    if config.class_weights == "balanced":
        # the weight of a class without images does not matter, but must not divide by 0
        return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)
    return _take_weights(len(counts), config)


def weigh_positives(counts: NDArray[np.int64], images: int, config: FinetuneConfig) -> NDArray[np.float32] | None:
    """Return the weight of present labels (C,) in the binary cross entropy; None if all are 1.

    With ``balanced``, it is the number of images without the label divided by that of images with it, so that both
    groups have the same total weight.
    """
    if config.class_weights == "balanced":
        return (np.maximum(images - counts, 1) / np.maximum(counts, 1)).astype(np.float32)
    return _take_weights(len(counts), config)


def balance_images(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probabilities (n,) of images to be drawn that make all classes of ``labels`` (n,) equally likely."""
    counts = np.bincount(labels)
    chances = 1 / counts[labels]
    return chances / chances.sum()


def balance_labelled_images(targets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the probability of each image (n,) to be drawn, by the rarest of its labels in ``targets`` (n, C).

    It is proportional to 1 / the number of images with that label. Having no label counts as a label.
    """
    has_no_label = ~targets.any(axis=1, keepdims=True)
    extended = np.concatenate([targets, has_no_label], axis=1)
    rarity = 1 / np.maximum(extended.sum(axis=0), 1)
    chances: NDArray[np.float64] = (extended * rarity).max(axis=1)
    return chances / chances.sum()


def _take_weights(classes: int, config: FinetuneConfig) -> NDArray[np.float32] | None:
    """Return the weights in the configuration; raises ConfigError unless there is one for each class."""
    if config.class_weights is None:
        return None
    if len(config.class_weights) != classes:
        raise ConfigError(
            f"class_weights: gives {len(config.class_weights)} weights, and data.source has {classes} classes; give "
            "one for each, in the order of the classes, or balanced"
        )
    return np.array(config.class_weights, np.float32)
