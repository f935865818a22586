"""The interface of a pretraining objective that the learner uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ehm.backends.base import Reconstruction
from ehm.config import TrainConfig

__all__ = ["TorchObjective"]


class TorchObjective(ABC):
    """A pretraining objective on one device: the model with its loss, and what the loss needs beside images and mask.

    A model has ``embed``, ``compute_similarity``, ``compute_features``, ``pool_features``, with a class token
    ``compute_saliency``, and a ``stack`` of the modules that its encoder is made of. Its ``forward`` gives the loss
    from images, from the indices of visible and of masked patches and each patch's place among both, from tokens of
    ``embed`` if there are any, and from :meth:`compute_targets`.
    ``predict`` gives what the model says of wanted patches, from images, from the indices of visible patches, each
    patch's place, and the indices of wanted ones.
    """

    teacher: Any = None
    """The encoder whose features are predicted, which a learner sets by :meth:`build_teacher`."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.device = device

    @abstractmethod
    def build_model(self) -> Any:
        """Return an untrained model on the CPU; its weights are drawn from torch's random numbers."""

    def build_teacher(self, model: Any, average: Any | None) -> Any | None:
        """Return the encoder whose features are predicted, None if the objective has none; it becomes ``teacher``.

        ``model`` has its first weights, and is not spread over processes yet; ``average`` is its moving average, None
        if there is none.
        """
        return None

    def compute_targets(self, images: Tensor) -> dict[str, Tensor]:
        """Compute from normalised images (B, 3, H, W), outside the model, what its ``forward`` takes by keyword."""
        return {}

    def describe_targets(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute figures to log, by name, from the targets of some images."""
        return {}

    @abstractmethod
    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """Predict every patch of normalised images (B, 3, H, W), from indices (B, ...) as ``forward`` takes them.

        ``model`` is the trained one, in evaluation mode; the caller has switched off gradients.
        """
