"""Features of a frozen encoder, measured without any training: by nearest neighbours and by RankMe.

Shapes: n images, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ehm.analysis.feature_rank import compute_rankme, compute_spread
from ehm.analysis.neighbours import vote_by_neighbours, vote_for_labels
from ehm.backends.base import Backend
from ehm.config import ProbeConfig
from ehm.data import EvalTransform, Source
from ehm.data.subset import Subset, find_targets, require_labels
from ehm.errors import ConfigError
from ehm.tasks.classification.evaluation import MOST_AT_ONCE
from ehm.tasks.classification.metrics import ClassificationReport, report_classification
from ehm.tasks.classification.multi_label_metrics import MultiLabelReport, report_labels
from ehm.tasks.predictions import track_batches
from ehm.training.loaders import make_eval_loader
from ehm.training.rows import collect_rows

__all__ = ["FeatureRank", "FrozenFeatures", "measure_neighbours_and_rank", "measure_rank"]

MOST_RANKED = 25_600
"""Images that RankMe is computed from, at most: as many as in its paper (Garrido et al., 2023)."""


@dataclass(frozen=True)
class FeatureRank:
    """RankMe and the spread of the features of ``images`` images, ``width`` numbers each.

    :mod:`ehm.analysis.feature_rank` defines both.
    """

    rankme: float
    feature_spread: float
    images: int
    width: int

    def describe(self) -> str:
        """Return the figures in a sentence."""
        return (
            f"RankMe {self.rankme:.1f} of at most {min(self.images, self.width):,}, spread of the features "
            f"{self.feature_spread:.3f} ({self.images:,} images)"
        )


class FrozenFeatures:
    """Extracts features by the encoder that ``config.model`` names, pooled as ``config.neighbours_pool`` says."""

    def __init__(self, config: ProbeConfig, backend: Backend) -> None:
        self._config = config
        self._processes = backend.processes
        self._encoder = backend.create_encoder(config.model, config.data, config.neighbours_pool)
        self._transform = EvalTransform.from_spec(self._encoder.image_size, self._encoder.inputs)

    def extract(self, subset: Subset[Source], title: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the indices (n,) of the images of ``subset`` in its source, and their features (n, D).

        Files that cannot be read are left out. All processes call this.
        """
        with make_eval_loader(
            subset.source,
            self._transform,
            self._config,
            self._processes,
            most=MOST_AT_ONCE,
            subset=subset.selected,
        ) as loader:
            return collect_rows(self._encoder.compute_features, track_batches(loader, title), self._processes)


def measure_neighbours_and_rank(
    config: ProbeConfig, backend: Backend, train: Subset[Source], val: Subset[Source]
) -> tuple[ClassificationReport | MultiLabelReport, FeatureRank]:
    """Classify each image of ``val`` by the images of ``train`` whose features are nearest to its own (k-NN).

    Returns the figures of the classification, and the rank of the features of ``train``.
    """
    if config.neighbours > len(train):
        raise ConfigError(f"neighbours {config.neighbours}: there are only {len(train):,} images to search")
    frozen = FrozenFeatures(config, backend)
    searched, features = frozen.extract(train, "features to search")
    classed, queries = frozen.extract(val, "features to class")
    targets = find_targets(train.source)
    val_targets = find_targets(val.source)
    if targets is not None and val_targets is not None:
        shares = vote_for_labels(features, targets[searched], queries, config.neighbours)
        return report_labels(val_targets[classed], shares, train.source.classes), rank_features(features)
    known_labels = require_labels(train.source, train.title)[searched]
    labels = require_labels(val.source, val.title)[classed]
    classes = train.source.classes
    votes = vote_by_neighbours(features, known_labels, queries, len(classes), config.neighbours)
    return report_classification(labels, votes, classes), rank_features(features)


def measure_rank(config: ProbeConfig, backend: Backend, subset: Subset[Source]) -> FeatureRank:
    """Return the rank of the features of ``subset``, which needs no labels, from ``MOST_RANKED`` images at most."""
    sample = replace(subset, selected=_draw_sample(subset.indices))
    _, features = FrozenFeatures(config, backend).extract(sample, "features")
    return rank_features(features)


def rank_features(features: NDArray[np.float32]) -> FeatureRank:
    """Return RankMe and the spread of ``features`` (n, D), from ``MOST_RANKED`` rows at most."""
    features = features[_draw_sample(np.arange(len(features)))]
    return FeatureRank(compute_rankme(features), compute_spread(features), *features.shape)


def _draw_sample(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw at most ``MOST_RANKED`` of ``indices``, the same ones every time, and sort them."""
    return np.sort(np.random.default_rng(0).permutation(indices)[:MOST_RANKED])
