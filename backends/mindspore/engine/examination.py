"""A pretraining step that is looked into: where its numbers stop being finite, and how large they get.

Compiled graphs call no hooks, and MindSpore has no anomaly detection: the loss and its gradients are computed once more
operator by operator (PyNative), with hooks on every cell, before the step itself is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from ehm.backends.base import StepExamination
from ehm.backends.examination import StepNotes

__all__ = ["examine_step"]

_REAL = (ms.float16, ms.bfloat16, ms.float32)


def _make_hook(notes: StepNotes, name: str) -> Callable[[nn.Cell, Any, Any], None]:
    """Return a hook that notes the outputs of the cell called ``name``."""

    def look(cell: nn.Cell, inputs: Any, outputs: Any) -> None:
        arrays = _to_arrays(outputs)
        largest = None
        for array in arrays:
            finite = np.abs(array[np.isfinite(array)])
            if finite.size:
                largest = max(largest or 0.0, float(finite.max()))
        notes.add_output(name, largest, _are_finite(arrays), lambda: _are_finite(_to_arrays(inputs)))

    return look


def examine_step(
    model: nn.Cell,
    loss: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    parameters: Any,
    take_step: Callable[[], Mapping[str, SupportsFloat]],
) -> StepExamination:
    """Compute ``loss(*inputs)`` of ``model`` and the gradients of ``parameters`` under observation, then take the step.

    ``inputs`` are those of the whole batch, in one part.
    """
    notes = StepNotes()
    handles = [cell.register_forward_hook(_make_hook(notes, name)) for name, cell in model.cells_and_names()]
    _, gradients = ms.value_and_grad(loss, None, parameters)(*inputs)
    for handle in handles:
        handle.remove()
    # in the order of the backward pass, which comes from the end of the network
    for parameter, gradient in reversed(list(zip(parameters, gradients, strict=True))):
        notes.add_gradient(parameter.name, _are_finite([gradient.astype(ms.float32).asnumpy()]))
    return notes.describe({name: float(value) for name, value in take_step().items()})


def _to_arrays(value: Any) -> list[np.ndarray[Any, Any]]:
    """Return the tensors of numbers with a fraction in ``value`` as arrays."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [item.astype(ms.float32).asnumpy() for item in values if isinstance(item, Tensor) and item.dtype in _REAL]


def _are_finite(arrays: list[np.ndarray[Any, Any]]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)
