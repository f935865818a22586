"""Several labels an image, each with a probability of its own and a threshold.

Shapes: B images, C labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.predict.comparison import Comparison
from ehm.deploy.predict.features import FeaturesHandler
from ehm.deploy.predict.handler import CardTexts, Outputs
from ehm.deploy.predict.prediction import Prediction
from ehm.probabilities import compute_sigmoid

__all__ = ["MultiLabelHandler"]


class MultiLabelHandler(FeaturesHandler):
    """A bundle that gives a logit for each of several labels (C,), and perhaps features and patches beside them."""

    card = CardTexts("Multi-label image classifier", "image-classification", "f1")
    agreement = "the same answer for {:.1%} of the labels"

    def describe(self, image: str, outputs: Outputs, top: int) -> Prediction:
        """Return the row of one image in the network's outputs as a prediction.

        It has the ``top`` likeliest labels, and the names of all that reach their thresholds.
        """
        features = outputs.get("features")
        patches = outputs.get("patches")
        if "logits" not in outputs:
            return Prediction(image, (), features, patches)
        ranked, present = self.rank_labels(outputs["logits"], top)
        return Prediction(image, ranked, features, patches, present=present)

    def rank_labels(
        self, logits: NDArray[np.float32], top: int
    ) -> tuple[tuple[tuple[str, float], ...], tuple[str, ...]]:
        """Return the ``top`` likeliest labels of one image's logits (C,) with their probabilities, and those present.

        What is present is in the order of the labels, and there may be more of it than ``top``.
        """
        labels = self.manifest.labels
        probabilities = compute_sigmoid(logits)
        best = np.argsort(-probabilities, kind="stable")[:top]
        ranked = tuple((labels[index], float(probabilities[index])) for index in best)
        is_present = self._find_present(logits)
        return ranked, tuple(labels[index] for index in np.flatnonzero(is_present))

    def compare(self, expected: Outputs, found: Outputs) -> Comparison:
        """Compare the outputs of a batch with those in float32, and the answers by the share of labels that agree."""
        compared = super().compare(expected, found)
        if "logits" not in found:
            return compared
        same = self._find_present(expected["logits"]) == self._find_present(found["logits"])
        return Comparison(compared.cosines, same.mean(axis=1))

    def _find_present(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which labels reach their thresholds: (..., C) -> (..., C)."""
        present: NDArray[np.bool_] = compute_sigmoid(logits) >= np.array(self.manifest.thresholds)
        return present


HANDLER = MultiLabelHandler
"""The handler of the task that this file is named after; ``create_handler`` finds it by that name."""
