"""The state of a learner, which a checkpoint keeps and another learner, of any backend, goes on from."""

from __future__ import annotations

from typing import Any

import numpy as np

from ehm.backends.common import STEP
from ehm.storage.arrays import Arrays, LearnerState, join_average, split_average

__all__ = ["ResumableLearner"]


class ResumableLearner:
    """A learner whose state is its parameters, its optimiser's arrays, a moving average and its number of steps.

    A backend says how arrays travel to and from its networks (``_to_arrays``, ``_load_arrays``). ``_training`` is its
    step with the optimiser, ``_average`` the moving average of ``model``, None if there is none. The number of steps is
    part of the state if ``_draws_by_step``: if what a step draws at random depends on it.
    """

    _to_arrays: staticmethod[[Any], Arrays]
    _load_arrays: staticmethod[[Any, Arrays], None]
    model: Any
    _training: Any
    _average: Any = None
    _steps: int = 0
    _draws_by_step: bool = True

    def state(self) -> LearnerState:
        """Return what a checkpoint keeps; see :meth:`ehm.backends.base.Learner.state`."""
        optimizer = dict(self._training.state())
        if self._draws_by_step:
            optimizer[STEP] = np.array(self._steps, np.int64)
        if self._average is not None:
            optimizer = join_average(optimizer, self._to_arrays(self._average))
        return LearnerState(self._to_arrays(self.model), optimizer)

    def load(self, state: LearnerState) -> None:
        """Go on from ``state``; see :meth:`ehm.backends.base.Learner.load`."""
        self._load_arrays(self.model, state.model)
        optimizer, average = split_average(state.optimizer)
        if self._average is not None:
            self._load_arrays(self._average, average)
        # a state without it is that of a learner that draws nothing, or of fresh weights
        self._steps = int(optimizer.pop(STEP, np.array(0)))
        self._training.load(optimizer)
