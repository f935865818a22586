"""The state of a learner, which a checkpoint keeps and another learner, of any backend, goes on from."""

from __future__ import annotations

from typing import Any

import numpy as np

from ehm.backends.common import STEP
from ehm.storage.arrays import (
    Arrays,
    LearnerState,
    add_prefix,
    drop_names,
    join_average,
    split_average,
    take_prefix,
)

__all__ = ["ResumableLearner", "ResumableTask"]

_UPDATES = "lora/"
"""Before the names of the parts of the parameters, among the optimiser's arrays."""
_AVERAGED_UPDATES = "lora_ema/"
"""Before those of the moving average."""
_PARTS = (_UPDATES, _AVERAGED_UPDATES)
_IN_TRAINING = "trained/"
"""Before the names of a task's weights in training among them, if the parameters are the average of these."""


class ResumableLearner:
    """A learner whose state is its parameters, its optimiser's arrays, a moving average and its number of steps.

    A backend says how arrays travel to and from its networks (``_to_arrays``, ``_load_arrays``). ``_training`` is its
    step with the optimiser, ``_average`` the moving average of ``model``, None if there is none. The number of steps is
    part of the state if ``_draws_by_step``: if what a step draws at random depends on it.

    The parameters are those of a plain network, which everybody can open. A network in training may be made of more:
    of weights and updates of them, whose sums the parameters are. The parts travel by ``_take_updates`` and
    ``_load_updates``, and lie among the optimiser's arrays.
    """

    _to_arrays: staticmethod[[Any], Arrays]
    _load_arrays: staticmethod[[Any, Arrays], None]
    _take_updates: staticmethod[[Any], Arrays] | None = None
    _load_updates: staticmethod[[Any, Arrays], None] | None = None
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
        optimizer |= self._copy_updates(self.model, _UPDATES)
        if self._average is not None:
            optimizer = join_average(optimizer, self._to_arrays(self._average))
            optimizer |= self._copy_updates(self._average, _AVERAGED_UPDATES)
        return LearnerState(self._to_arrays(self.model), optimizer)

    def load(self, state: LearnerState) -> None:
        """Go on from ``state``; see :meth:`ehm.backends.base.Learner.load`."""
        optimizer, average = split_average(state.optimizer)
        self._load_parts(self.model, state.model, take_prefix(optimizer, _UPDATES))
        if self._average is not None:
            self._load_parts(self._average, average, take_prefix(optimizer, _AVERAGED_UPDATES))
        optimizer = {name: array for name, array in optimizer.items() if not name.startswith(_PARTS)}
        # a state without it is that of a learner that draws nothing, or of fresh weights
        self._steps = int(optimizer.pop(STEP, np.array(0)))
        self._training.load(optimizer)

    def _copy_updates(self, module: Any, prefix: str) -> Arrays:
        if self._take_updates is None:
            return {}
        return add_prefix(self._take_updates(module), prefix)

    def _load_parts(self, module: Any, arrays: Arrays, updates: Arrays) -> None:
        """Load plain ``arrays`` and then, if there are any, the parts that they are the sums of."""
        self._load_arrays(module, arrays)
        if updates and self._load_updates is not None:
            self._load_updates(module, updates)


class ResumableTask(ResumableLearner):
    """A learner of a task: a moving average, if there is one, is what is measured.

    It is also what a state has as its parameters. The weights in training lie among the optimiser's arrays then.
    """

    @property
    def measured_model(self) -> Any:
        """The model that is measured: the moving average if there is one, else the model in training."""
        return self.model if self._average is None else self._average

    def state(self) -> LearnerState:
        """Return what a checkpoint keeps; see :meth:`ehm.backends.base.Learner.state`."""
        state = super().state()
        if self._average is None:
            return state
        optimizer, average = split_average(state.optimizer)
        return LearnerState(average, optimizer | add_prefix(state.model, _IN_TRAINING))

    def load(self, state: LearnerState) -> None:
        """Go on from ``state``; one without weights in training, to be measured, has the average alone."""
        in_training = take_prefix(state.optimizer, _IN_TRAINING)
        optimizer = drop_names(state.optimizer, add_prefix(in_training, _IN_TRAINING))
        if self._average is not None:
            optimizer = join_average(optimizer, state.model)
        super().load(LearnerState(in_training or state.model, optimizer))
