"""The moving average of a model's weights, which another model of the same cells holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from ehm.backends.mindspore.engine.graphs import compile_graph

__all__ = ["MovingAverage", "copy_model"]

_APPLY_TO_EACH = ops.HyperMap()


class MovingAverage:
    """Updates of ``average``, a model of the same cells as ``model``: average = decay * average + (1 - decay) * model.

    Integers, such as the number of batches that a batch norm has seen, are copied.
    """

    def __init__(self, average: nn.Cell, model: nn.Cell) -> None:
        moving: list[tuple[Any, Any]] = []
        counts: list[tuple[Any, Any]] = []
        for own, value in zip(average.get_parameters(), model.get_parameters(), strict=True):
            pairs = counts if own.dtype in (ms.int32, ms.int64) else moving
            pairs.append((own, value))
        self._counts = counts
        self._move = compile_graph(_build_update(moving))

    def update(self, decay: float) -> None:
        """Move the average towards the model."""
        # a tensor, as a number would be a constant of the graph
        self._move(Tensor(1 - decay, ms.float32))
        for average, value in self._counts:
            ops.assign(average, value)


def copy_model(model: nn.Cell) -> nn.Cell:
    """Return a copy of ``model`` in evaluation mode, whose parameters have names of their own within a graph."""
    average = copy.deepcopy(model)
    average.set_train(False)
    average.update_parameters_name("ema.")
    return average


def _build_update(pairs: list[tuple[Any, Any]]) -> Callable[[Tensor], Any]:
    """Return a function of 1 - decay that moves the first of each of ``pairs`` of parameters towards the second."""
    averages = ParameterTuple([average for average, _ in pairs])
    values = ParameterTuple([value for _, value in pairs])

    def update(share: Tensor) -> Any:
        return _APPLY_TO_EACH(ops.partial(_move_towards, share), averages, values)

    return update


def _move_towards(share: Tensor, average: Tensor, value: Tensor) -> Tensor:
    return ops.assign_add(average, (value - average) * share)
