"""The MindSpore backend: one code for its Ascend and its CPU target, and no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# MindSpore logs warnings by default; errors alone, as the other libraries do
os.environ.setdefault("GLOG_v", "3")

from ehm.backends.base import (
    DeviceInfo,
    Encoder,
    Learner,
    Processes,
    TextLearner,
    TokenizerLearner,
)
from ehm.backends.mindspore.engine.devices import (
    Target,
    choose_target,
    describe_target,
    is_busy,
    read_peak_memory,
)
from ehm.backends.mindspore.engine.distributed import join_processes
from ehm.backends.mindspore.engine.step import set_deterministic
from ehm.config import (
    LanguageTrainingConfig,
    ModelSource,
    SourceConfig,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
)
from ehm.errors import BackendError
from ehm.models.weights import Pool, Weights

__all__ = ["MindsporeBackend", "backend"]

_REASONS = {
    "detection": "not in MindSpore, whose graphs have fixed shapes, where boxes, their suppression and RoIAlign change "
    "theirs with every image",
}
"""Reasons why MindSpore does not train for a task that torch trains for."""


class MindsporeBackend:
    """Implements :class:`ehm.backends.base.Backend` on one MindSpore target."""

    name = "mindspore"

    def __init__(self, target: Target, processes: Processes) -> None:
        self.target = target
        self.processes = processes

    def describe_device(self) -> DeviceInfo:
        """Describe the device and what it offers."""
        return describe_target(self.target)

    def is_busy(self) -> bool:
        """See :meth:`ehm.backends.base.Backend.is_busy`."""
        return is_busy(self.target)

    def read_peak_memory(self) -> int:
        """See :meth:`ehm.backends.base.Backend.read_peak_memory`."""
        return read_peak_memory(self.target)

    def open_weights(self, source: ModelSource) -> Weights:
        """See :meth:`ehm.backends.base.Backend.open_weights`."""
        from ehm.backends.mindspore.models.loading import open_weights

        return open_weights(source)

    def create_learner(self, config: TrainConfig, weights: Weights | None = None) -> Learner:
        """Create a model in pretraining, initialised from ``config.run.seed`` and from ``config.model.init``."""
        from ehm.backends.mindspore.learners.pretraining import MindsporeLearner

        set_deterministic(config.run.deterministic)
        return MindsporeLearner(config, self.target, self.processes, weights)

    def create_task_learner(self, config: TaskConfig, classes: int, weights: Weights | None = None) -> Any:
        """Create the learner in the file of ``ehm.backends.mindspore.learners`` that has the task's name.

        Raises BackendError if there is none.
        """
        name = f"ehm.backends.mindspore.learners.{config.task}"
        if find_spec(name) is None:
            reason = _REASONS.get(config.task, "not in MindSpore")
            raise BackendError(f"{config.task}: {reason}; --device cpu, cuda or npu trains it with torch")
        set_deterministic(config.run.deterministic)
        learner = import_module(name).TASK_LEARNER
        return learner(config, classes, self.target, self.processes, weights)

    def create_encoder(
        self, source: ModelSource, data: SourceConfig | None = None, pool: Pool | None = None
    ) -> Encoder:
        """See :meth:`ehm.backends.base.Backend.create_encoder`."""
        from ehm.backends.mindspore.learners.encoder import MindsporeEncoder

        return MindsporeEncoder(source, data, pool)

    def create_tokenizer(self, config: TokenizerConfig) -> TokenizerLearner:
        """Create a discrete VAE in training, initialised from ``config.run.seed``."""
        from ehm.backends.mindspore.learners.tokenizer import MindsporeTokenizer

        set_deterministic(config.run.deterministic)
        return MindsporeTokenizer(config, self.target, self.processes)

    def create_text_learner(self, config: LanguageTrainingConfig, texts: Sequence[str]) -> TextLearner:
        """Raise BackendError: this backend has none."""
        raise BackendError("not in MindSpore; --device cpu, cuda or npu trains a language model with torch")


def backend(device: str) -> MindsporeBackend:
    """Return the backend for a ``--device`` value that :func:`ehm.backends.get` sends here."""
    target = choose_target(device)
    return MindsporeBackend(target, join_processes(target))
