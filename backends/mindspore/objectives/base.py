"""The interface of a pretraining objective that the learner uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from ehm.backends.base import Reconstruction
from ehm.config import TrainConfig
from ehm.config.encoders import PLAIN, VitSpec
from ehm.errors import BackendError

__all__ = ["MindsporeObjective"]


class MindsporeObjective(ABC):
    """A pretraining objective: the model with its loss. Raises BackendError for an encoder that this backend lacks.

    A model has ``compute_similarity``, ``compute_features``, ``pool_features`` and ``compute_saliency``. Its
    ``construct`` gives the loss from images, from the indices of visible and of masked patches and each patch's place
    among both, and from drop path's factors if the objective has drop path. Its ``predict`` gives what it says of
    wanted patches.
    """

    def __init__(self, config: TrainConfig) -> None:
        spec = config.spec
        if not isinstance(spec, VitSpec):
            raise BackendError(f"encoder {config.encoder}: the MindSpore backend has ViTs; a Swin needs torch")
        if spec.form != PLAIN:
            raise BackendError(f"model.form: {spec.description} needs torch; the MindSpore backend has plain ViTs")
        self.config = config
        self.spec = spec

    def random_numbers(self) -> np.random.Generator:
        """Return the generator of the first weights, always at its beginning."""
        return np.random.default_rng(self.config.run.seed)

    @abstractmethod
    def build_model(self, dtype: Any) -> nn.Cell:
        """Return an untrained model that multiplies matrices in ``dtype``."""

    @abstractmethod
    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """Predict every patch of normalised images (B, 3, H, W), from indices (B, ...) as ``construct`` takes them."""
