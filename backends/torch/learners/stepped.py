"""A module in training whose state is its parameters, its optimiser's and the number of steps that it has taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from ehm.backends.base import Processes
from ehm.backends.common import step_entropy
from ehm.backends.resumable import ResumableLearner
from ehm.backends.torch.engine.step import Training, seed_random_numbers
from ehm.backends.torch.engine.tensors import load_arrays, to_arrays

__all__ = ["Stepped"]


class Stepped(ResumableLearner):
    """``model`` on ``device``; what a step draws is that of ``seed``, the step's number and the process."""

    _to_arrays = staticmethod(to_arrays)
    _load_arrays = staticmethod(load_arrays)

    def __init__(self, model: Any, training: Training, device: torch.device, processes: Processes, seed: int) -> None:
        self.model = model
        self._training, self._device, self._processes = training, device, processes
        self._seed = seed

    def _step(
        self, rows: int, loss: Callable[[slice], Tensor], lr: float, weight_decay: float
    ) -> dict[str, SupportsFloat]:
        """One step of :class:`Training`, with its own random numbers (drop path, dropout, samples)."""
        with seed_random_numbers(self._device, step_entropy(self._seed, self._steps, self._processes.rank)):
            metrics = self._training.step(rows, loss, lr, weight_decay)
        self._steps += 1
        return metrics
