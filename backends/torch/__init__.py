"""The PyTorch backend: one code for every torch device."""

from __future__ import annotations

import torch

from ehm.backends.base import Classifier, DeviceInfo, Encoder, Learner
from ehm.backends.torch.devices import describe, pick
from ehm.config import FinetuneConfig, ModelSource, TrainConfig

__all__ = ["TorchBackend", "backend"]


class TorchBackend:
    """Implements :class:`ehm.backends.base.Backend` on one torch device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = device.type

    def info(self) -> DeviceInfo:
        """What the device offers."""
        return describe(self.device)

    def learner(self, config: TrainConfig) -> Learner:
        """A model in pretraining, initialised from ``config.run.seed``."""
        from ehm.backends.torch.learner import TorchLearner

        return TorchLearner(config, self.device)

    def classifier(self, config: FinetuneConfig, classes: int) -> Classifier:
        """An encoder from ``config.model`` under a fresh linear head of ``classes``."""
        from ehm.backends.torch.classifier import TorchClassifier

        return TorchClassifier(config, classes, self.device)

    def encoder(self, source: ModelSource) -> Encoder:
        """A trained encoder in evaluation mode."""
        from ehm.backends.torch.encoder import TorchEncoder

        return TorchEncoder(source, self.device)


def backend(device: str) -> TorchBackend:
    """The backend for a ``--device`` value that :func:`ehm.backends.get` sends here."""
    return TorchBackend(pick(device))
