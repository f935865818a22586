"""The PyTorch backend: one code for every torch device."""

from __future__ import annotations

import os

# torch imports every vendor's plug-in that is installed, and fails where a library of the vendor's is missing. The one
# of the device that is asked for is imported by devices.pick, which can say what is wrong.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

import torch

from ehm.backends.base import (
    Classifier,
    Detector,
    DeviceInfo,
    Embedder,
    Encoder,
    Learner,
    Processes,
    Segmenter,
    TokenizerLearner,
)
from ehm.backends.torch.engine.devices import choose_device, describe_device
from ehm.backends.torch.engine.distributed import join_processes
from ehm.backends.torch.engine.step import set_deterministic
from ehm.config import (
    DetectionConfig,
    FinetuneConfig,
    ModelSource,
    RetrievalConfig,
    SegmentationConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)
from ehm.models.weights import Weights

__all__ = ["TorchBackend", "backend"]


class TorchBackend:
    """Implements :class:`ehm.backends.base.Backend` on one torch device."""

    def __init__(self, device: torch.device, processes: Processes) -> None:
        self.device = device
        self.processes = processes
        self.name = device.type

    def describe_device(self) -> DeviceInfo:
        """Describe the device and what it offers."""
        return describe_device(self.device)

    def create_learner(self, config: TrainConfig) -> Learner:
        """Create a model in pretraining, initialised from ``config.run.seed``."""
        from ehm.backends.torch.learners.pretraining import TorchLearner

        set_deterministic(config.run.deterministic)
        return TorchLearner(config, self.device, self.processes)

    def create_classifier(self, config: FinetuneConfig, classes: int, weights: Weights | None = None) -> Classifier:
        """Create an encoder from ``config.model`` under a fresh linear head of ``classes``."""
        from ehm.backends.torch.learners.classifier import TorchClassifier

        set_deterministic(config.run.deterministic)
        return TorchClassifier(config, classes, self.device, self.processes, weights)

    def create_detector(self, config: DetectionConfig, classes: int, weights: Weights | None = None) -> Detector:
        """Create an encoder from ``config.model`` under fresh heads for ``classes`` kinds of objects."""
        from ehm.backends.torch.learners.detector import TorchDetector

        set_deterministic(config.run.deterministic)
        return TorchDetector(config, classes, self.device, self.processes, weights)

    def create_segmenter(self, config: SegmentationConfig, classes: int, weights: Weights | None = None) -> Segmenter:
        """Create an encoder from ``config.model`` under a fresh head for ``classes``."""
        from ehm.backends.torch.learners.segmenter import TorchSegmenter

        set_deterministic(config.run.deterministic)
        return TorchSegmenter(config, classes, self.device, self.processes, weights)

    def create_embedder(self, config: RetrievalConfig, classes: int, weights: Weights | None = None) -> Embedder:
        """Create an encoder from ``config.model`` under a fresh descriptor."""
        from ehm.backends.torch.learners.embedder import TorchEmbedder

        set_deterministic(config.run.deterministic)
        return TorchEmbedder(config, classes, self.device, self.processes, weights)

    def create_encoder(self, source: ModelSource, data: SourceConfig | None = None) -> Encoder:
        """Open a trained encoder in evaluation mode; what ``data`` sets about images overrides what its weights say."""
        from ehm.backends.torch.learners.encoder import TorchEncoder

        return TorchEncoder(source, self.device, data)

    def create_tokenizer(self, config: TokenizerConfig) -> TokenizerLearner:
        """Create a discrete VAE in training, initialised from ``config.run.seed``."""
        from ehm.backends.torch.learners.tokenizer import TorchTokenizer

        set_deterministic(config.run.deterministic)
        return TorchTokenizer(config, self.device, self.processes)


def backend(device: str) -> TorchBackend:
    """Return the backend for a ``--device`` value that :func:`ehm.backends.get` sends here."""
    return TorchBackend(*join_processes(choose_device(device)))
