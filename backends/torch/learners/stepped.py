"""A module in training whose state is its parameters, its optimiser's and the number of steps that it has taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from ehm.backends.base import Processes
from ehm.backends.common import STEP, step_entropy
from ehm.backends.torch.engine.step import Training, seed_random_numbers
from ehm.backends.torch.engine.tensors import load_arrays, to_arrays
from ehm.storage.arrays import LearnerState

__all__ = ["Stepped"]


class Stepped:
    """``model`` on ``device``; what a step draws is that of ``seed``, the step's number and the process."""

    def __init__(self, model: Any, training: Training, device: torch.device, processes: Processes, seed: int) -> None:
        self.model = model
        self._training, self._device, self._processes = training, device, processes
        self._seed, self._steps = seed, 0

    def _step(
        self, rows: int, loss: Callable[[slice], Tensor], lr: float, weight_decay: float
    ) -> dict[str, SupportsFloat]:
        """One step of :class:`Training`, with its own random numbers (drop path, dropout, samples)."""
        with seed_random_numbers(self._device, step_entropy(self._seed, self._steps, self._processes.rank)):
            metrics = self._training.step(rows, loss, lr, weight_decay)
        self._steps += 1
        return metrics

    def state(self) -> LearnerState:
        """See :meth:`ehm.backends.base.Learner.state`."""
        return LearnerState(to_arrays(self.model), {**self._training.state(), STEP: np.array(self._steps, np.int64)})

    def load(self, state: LearnerState) -> None:
        """See :meth:`ehm.backends.base.Learner.load`."""
        load_arrays(self.model, state.model)
        moments = dict(state.optimizer)
        self._steps = int(moments.pop(STEP, np.array(0)))
        self._training.load(moments)
