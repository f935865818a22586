"""The interface of a pretraining objective that the learner uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from ehm.backends.base import Reconstruction
from ehm.config import TrainConfig

__all__ = ["MindsporeObjective"]


class MindsporeObjective(ABC):
    """A pretraining objective: the model with its loss, and what the loss needs beside images and mask.

    A model has ``embed``, ``compute_similarity``, ``compute_features``, ``pool_features`` and, with a class token,
    ``compute_saliency``. Its ``construct`` gives the loss from images, from the indices of visible and of masked
    patches and each patch's place among both, from :meth:`compute_targets`, and from drop path's factors if the
    objective has drop path. Its ``predict`` gives what it says of wanted patches.
    """

    teacher: Any = None
    """The encoder whose features are predicted, which a learner sets by :meth:`build_teacher`."""
    has_targets = False
    """True if the loss needs what :meth:`compute_targets` gives."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.spec: Any = config.spec

    def create_generator(self) -> np.random.Generator:
        """Return the generator of the first weights, always at its beginning."""
        return np.random.default_rng(self.config.run.seed)

    @abstractmethod
    def build_model(self, dtype: Any) -> nn.Cell:
        """Return an untrained model that multiplies matrices in ``dtype``."""

    def build_teacher(self, model: Any, average: Any | None, dtype: Any) -> Any | None:
        """Return the encoder whose features are predicted, None if the objective has none; it becomes ``teacher``.

        ``model`` has its first weights; ``average`` is its moving average, None if there is none.
        """
        return None

    def compute_targets(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute from normalised images (B, 3, H, W), outside the model, what its ``construct`` takes besides."""
        return ()

    def describe_targets(self, targets: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Compute figures to log, by name, from the targets of some images."""
        return {}

    def compute_hidden_channels_loss(self, model: Any, images: Tensor, seen: Tensor, *rest: Tensor) -> Tensor:
        """Compute the loss of normalised images (B, C, H, W) of which the encoder sees ``seen``, some channels.

        ``rest`` is what the model's ``construct`` takes behind the images.
        """
        # what a loss takes from whole images is among the targets
        loss: Tensor = model(seen, *rest)
        return loss

    @abstractmethod
    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """Predict every patch of normalised images (B, 3, H, W), from indices (B, ...) as ``construct`` takes them."""
