"""The PyTorch backend: one code for every torch device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

# torch imports every vendor's plug-in that is installed, and fails where a library of the vendor's is missing. The one
# of the device that is asked for is imported by devices.pick, which can say what is wrong.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

import torch

from ehm.backends.base import (
    DeviceInfo,
    Encoder,
    Learner,
    Processes,
    TextLearner,
    TokenizerLearner,
)
from ehm.backends.torch.engine.devices import allow_tf32, choose_device, describe_device, is_busy, read_peak_memory
from ehm.backends.torch.engine.distributed import join_processes
from ehm.backends.torch.engine.step import set_deterministic
from ehm.config import (
    LanguageTrainingConfig,
    ModelSource,
    SourceConfig,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
)
from ehm.models.weights import Pool, Weights

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

    def is_busy(self) -> bool:
        """See :meth:`ehm.backends.base.Backend.is_busy`."""
        return is_busy(self.device)

    def read_peak_memory(self) -> int:
        """See :meth:`ehm.backends.base.Backend.read_peak_memory`."""
        return read_peak_memory(self.device)

    def open_weights(self, source: ModelSource) -> Weights:
        """See :meth:`ehm.backends.base.Backend.open_weights`."""
        from ehm.backends.torch.models.loading import open_weights

        return open_weights(source)

    def create_learner(self, config: TrainConfig, weights: Weights | None = None) -> Learner:
        """Create a model in pretraining, initialised from ``config.run.seed``."""
        from ehm.backends.torch.learners.pretraining import TorchLearner

        self._set_numerics(config)
        return TorchLearner(config, self.device, self.processes, weights)

    def create_task_learner(self, config: TaskConfig, classes: int, weights: Weights | None = None) -> Any:
        """Create the learner in the file of ``ehm.backends.torch.learners`` that has the task's name."""
        module = import_module(f"ehm.backends.torch.learners.{config.task}")
        self._set_numerics(config)
        return module.TASK_LEARNER(config, classes, self.device, self.processes, weights)

    def create_encoder(
        self, source: ModelSource, data: SourceConfig | None = None, pool: Pool | None = None
    ) -> Encoder:
        """See :meth:`ehm.backends.base.Backend.create_encoder`."""
        from ehm.backends.torch.learners.encoder import TorchEncoder

        return TorchEncoder(source, self.device, data, pool)

    def create_tokenizer(self, config: TokenizerConfig) -> TokenizerLearner:
        """Create a discrete VAE in training, initialised from ``config.run.seed``."""
        from ehm.backends.torch.learners.tokenizer import TorchTokenizer

        self._set_numerics(config)
        return TorchTokenizer(config, self.device, self.processes)

    def create_text_learner(self, config: LanguageTrainingConfig, texts: Sequence[str]) -> TextLearner:
        """See :meth:`ehm.backends.base.Backend.create_text_learner`."""
        from ehm.backends.torch.learners.text import TorchTextModel

        self._set_numerics(config)
        return TorchTextModel(config, texts, self.device, self.processes)

    def _set_numerics(self, config: TrainConfig | TaskConfig | TokenizerConfig | LanguageTrainingConfig) -> None:
        """Let this process compute as ``config`` says, from the next kernel on."""
        set_deterministic(config.run.deterministic)
        allow_tf32(self.device, config.optim.tf32)


def backend(device: str) -> TorchBackend:
    """Return the backend for a ``--device`` value that :func:`ehm.backends.get` sends here."""
    return TorchBackend(*join_processes(choose_device(device)))
