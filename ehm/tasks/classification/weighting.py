"""The weights of classes in the loss, and the chances of images to be drawn: n images, C classes.

``counts`` (C,) are the numbers of training images of each class, or with each label.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.config import FinetuneConfig
from ehm.errors import ConfigError

__all__ = ["balance_images", "balance_labelled_images", "weigh_classes", "weigh_positives"]


def weigh_classes(counts: NDArray[np.int64], config: FinetuneConfig) -> NDArray[np.float32] | None:
    """Return the factor of each class (C,) in the cross entropy; None if all are alike.

    Balanced, class c with n_c of n images has n / (C n_c), as in scikit-learn: the mean over the images is 1.
    """
    if config.class_weights == "balanced":
        # a class without images, which was allowed, is never multiplied by its weight
        return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)
    return _take_weights(len(counts), config)


def weigh_positives(counts: NDArray[np.int64], images: int, config: FinetuneConfig) -> NDArray[np.float32] | None:
    """Return the factor of each label (C,) where it is present, in the binary cross entropy; None if all are alike.

    Balanced, it is the number of images without the label over that of images with it, so that both weigh the same.
    """
    if config.class_weights == "balanced":
        return (np.maximum(images - counts, 1) / np.maximum(counts, 1)).astype(np.float32)
    return _take_weights(len(counts), config)


def balance_images(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the chance of each image (n,) to be drawn with which all classes of ``labels`` (n,) are equally likely."""
    counts = np.bincount(labels)
    chances = 1 / counts[labels]
    return chances / chances.sum()


def balance_labelled_images(targets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the chance of each image (n,) to be drawn by the rarest of its labels in ``targets`` (n, C).

    It is in proportion to one over the number of images with that label. Images without any are taken for a label of
    their own.
    """
    without = ~targets.any(axis=1, keepdims=True)
    every = np.concatenate([targets, without], axis=1)
    rarity = 1 / np.maximum(every.sum(axis=0), 1)
    chances: NDArray[np.float64] = (every * rarity).max(axis=1)
    return chances / chances.sum()


def _take_weights(classes: int, config: FinetuneConfig) -> NDArray[np.float32] | None:
    """Return the weights that the configuration gives; raises ConfigError if they are not one for each class."""
    if config.class_weights is None:
        return None
    if len(config.class_weights) != classes:
        raise ConfigError(
            f"class_weights: gives {len(config.class_weights)} weights, and data.source has {classes} classes; give "
            "one for each, in the order of the classes, or balanced"
        )
    return np.array(config.class_weights, np.float32)
