"""The MindSpore backend: one code for its Ascend and its CPU target, and no torch."""

from __future__ import annotations

import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore's log: errors only, as everybody's

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

__all__ = ["MindsporeBackend", "backend"]


class MindsporeBackend:
    """Implements :class:`ehm.backends.base.Backend` on one MindSpore target."""

    name = "mindspore"

    def __init__(self, target: Target, processes: Processes) -> None:
        self.target, self.processes = target, processes

    def describe_device(self) -> DeviceInfo:
        """What the device offers."""
        return describe_target(self.target)

    def create_learner(self, config: TrainConfig) -> Learner:
        """A model in pretraining, initialised from ``config.run.seed`` and from ``config.model.init``."""
        from ehm.backends.mindspore.learners.pretraining import MindsporeLearner

        set_deterministic(config.run.deterministic)
        return MindsporeLearner(config, self.target, self.processes)

    def create_classifier(self, config: FinetuneConfig, classes: int) -> Classifier:
        """An encoder from ``config.model`` under a fresh linear head of ``classes``."""
        from ehm.backends.mindspore.learners.classifier import MindsporeClassifier

        set_deterministic(config.run.deterministic)
        return MindsporeClassifier(config, classes, self.target, self.processes)

    def create_detector(self, config: DetectionConfig, classes: int) -> Detector:
        """There is none: raises BackendError."""
        raise BackendError("detection: not in MindSpore; --device cpu, cuda or npu trains with torch")

    def create_segmenter(self, config: SegmentationConfig, classes: int) -> Segmenter:
        """There is none: raises BackendError."""
        raise BackendError("segmentation: not in MindSpore; --device cpu, cuda or npu trains it with torch")

    def create_embedder(self, config: RetrievalConfig, classes: int) -> Embedder:
        """There is none: raises BackendError."""
        raise BackendError("retrieval is not in MindSpore; --device cpu, cuda or npu trains it with torch")

    def create_encoder(self, source: ModelSource, data: SourceConfig | None = None) -> Encoder:
        """A trained encoder in evaluation mode; what ``data`` sets about images goes before what its weights say."""
        from ehm.backends.mindspore.learners.encoder import MindsporeEncoder

        return MindsporeEncoder(source, data)

    def create_tokenizer(self, config: TokenizerConfig) -> TokenizerLearner:
        """There is none: raises BackendError."""
        raise BackendError("not in MindSpore; --device cpu, cuda or npu trains one with torch")


def backend(device: str) -> MindsporeBackend:
    """The backend for a ``--device`` value that :func:`ehm.backends.get` sends here."""
    target = choose_target(device)
    return MindsporeBackend(target, join_processes(target))
