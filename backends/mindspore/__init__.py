"""The MindSpore backend: one code for its Ascend and its CPU target, and no torch."""

from __future__ import annotations

import os

# MindSpore logs warnings by default; errors alone, as the other libraries do
os.environ.setdefault("GLOG_v", "3")

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
from ehm.backends.mindspore.engine.devices import Target, choose_target, describe_target
from ehm.backends.mindspore.engine.distributed import join_processes
from ehm.backends.mindspore.engine.step import set_deterministic
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
from ehm.errors import BackendError
from ehm.models.weights import Weights

__all__ = ["MindsporeBackend", "backend"]


class MindsporeBackend:
    """Implements :class:`ehm.backends.base.Backend` on one MindSpore target."""

    name = "mindspore"

    def __init__(self, target: Target, processes: Processes) -> None:
        self.target = target
        self.processes = processes

    def describe_device(self) -> DeviceInfo:
        """Describe the device and what it offers."""
        return describe_target(self.target)

    def create_learner(self, config: TrainConfig) -> Learner:
        """Create a model in pretraining, initialised from ``config.run.seed`` and from ``config.model.init``."""
        from ehm.backends.mindspore.learners.pretraining import MindsporeLearner

        set_deterministic(config.run.deterministic)
        return MindsporeLearner(config, self.target, self.processes)

    def create_classifier(self, config: FinetuneConfig, classes: int, weights: Weights | None = None) -> Classifier:
        """Create an encoder from ``config.model`` under a fresh linear head of ``classes``."""
        from ehm.backends.mindspore.learners.classifier import MindsporeClassifier

        set_deterministic(config.run.deterministic)
        return MindsporeClassifier(config, classes, self.target, self.processes, weights)

    def create_detector(self, config: DetectionConfig, classes: int, weights: Weights | None = None) -> Detector:
        """Raise BackendError: this backend has none."""
        raise BackendError("detection: not in MindSpore; --device cpu, cuda or npu trains with torch")

    def create_segmenter(self, config: SegmentationConfig, classes: int, weights: Weights | None = None) -> Segmenter:
        """Raise BackendError: this backend has none."""
        raise BackendError("segmentation: not in MindSpore; --device cpu, cuda or npu trains it with torch")

    def create_embedder(self, config: RetrievalConfig, classes: int, weights: Weights | None = None) -> Embedder:
        """Raise BackendError: this backend has none."""
        raise BackendError("retrieval is not in MindSpore; --device cpu, cuda or npu trains it with torch")

    def create_encoder(self, source: ModelSource, data: SourceConfig | None = None) -> Encoder:
        """Open a trained encoder in evaluation mode; what ``data`` sets about images overrides what its weights say."""
        from ehm.backends.mindspore.learners.encoder import MindsporeEncoder

        return MindsporeEncoder(source, data)

    def create_tokenizer(self, config: TokenizerConfig) -> TokenizerLearner:
        """Raise BackendError: this backend has none."""
        raise BackendError("not in MindSpore; --device cpu, cuda or npu trains one with torch")


def backend(device: str) -> MindsporeBackend:
    """Return the backend for a ``--device`` value that :func:`ehm.backends.get` sends here."""
    target = choose_target(device)
    return MindsporeBackend(target, join_processes(target))
