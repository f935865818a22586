"""Classes of images: the likeliest, with their probabilities.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.predict.features import FeaturesHandler
from ehm.deploy.predict.handler import CardTexts, Outputs
from ehm.deploy.predict.prediction import Prediction
from ehm.probabilities import compute_softmax

__all__ = ["ClassificationHandler", "rank_classes"]


class ClassificationHandler(FeaturesHandler):
    """A bundle that gives logits (C,) for each image of a batch, and perhaps features and patches beside them."""

    card = CardTexts("Image classifier", "image-classification", "accuracy")

    def describe(self, image: str, outputs: Outputs, top: int) -> Prediction:
        """Return the row of one image in the network's outputs as a prediction with the ``top`` likeliest classes."""
        classes: tuple[tuple[str, float], ...] = ()
        if "logits" in outputs:
            classes = rank_classes(outputs["logits"], self.manifest.labels, top)
        return Prediction(image, classes, outputs.get("features"), outputs.get("patches"))


def rank_classes(logits: NDArray[np.float32], labels: Sequence[str], top: int) -> tuple[tuple[str, float], ...]:
    """Return the ``top`` likeliest classes of one image's logits (C,) with their probabilities."""
    probabilities = compute_softmax(logits)
    # stable, so that classes of the same probability stay in their order
    best = np.argsort(-probabilities, kind="stable")[:top]
    return tuple((labels[index], float(probabilities[index])) for index in best)


HANDLER = ClassificationHandler
"""The handler of the task that this file is named after; ``create_handler`` finds it by that name."""
