"""A module in training; its state is its parameters, the optimiser's state and the number of steps taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from ehm.backends.base import Processes
from ehm.backends.common import make_step_seed
from ehm.backends.resumable import ResumableLearner
from ehm.backends.torch.engine.seeds import seed_random_numbers
from ehm.backends.torch.engine.step import Training
from ehm.backends.torch.models.adapters import load_merged, load_updates, merge_arrays, take_updates

__all__ = ["SteppedLearner"]


class SteppedLearner(ResumableLearner):
    """A model in training on ``device``; its random numbers follow from ``seed``, the step and the process."""

    _to_arrays = staticmethod(merge_arrays)
    _load_arrays = staticmethod(load_merged)
    _take_updates = staticmethod(take_updates)
    _load_updates = staticmethod(load_updates)

    def __init__(self, model: Any, training: Training, device: torch.device, processes: Processes, seed: int) -> None:
        self.model = model
        self._training = training
        self._device = device
        self._processes = processes
        self._seed = seed

    def _take_step(
        self, rows: int, loss: Callable[[slice], Tensor], lr: float, weight_decay: float, *, is_part: bool = False
    ) -> dict[str, SupportsFloat]:
        """Take a step of :class:`Training` with random numbers of its own (drop path, dropout, samples)."""
        with seed_random_numbers(self._device, make_step_seed(self._seed, self._steps, self._processes.rank)):
            metrics = self._training.step(rows, loss, lr, weight_decay, is_part=is_part)
        self._steps += 1
        return metrics
