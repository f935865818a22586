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

__all__ = ["examine_step"]

_REAL = (ms.float16, ms.bfloat16, ms.float32)
_SHOWN = 5
"""Cells whose outputs are reported, those of the largest."""


class _Observer:
    """Hooks on cells that look at all that passes."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}
        self.first_output: str | None = None
        self.has_finite_inputs = True

    def make_hook(self, name: str) -> Callable[[nn.Cell, Any, Any], None]:
        """Return a hook for the cell called ``name``."""

        def look(cell: nn.Cell, inputs: Any, outputs: Any) -> None:
            arrays = _to_arrays(outputs)
            for array in arrays:
                finite = np.abs(array[np.isfinite(array)])
                if finite.size:
                    self.largest[name] = max(self.largest.get(name, 0.0), float(finite.max()))
            # a cell ends after those inside of it, so that the first one is the innermost
            if self.first_output is None and not _are_finite(arrays):
                self.first_output = name
                self.has_finite_inputs = _are_finite(_to_arrays(inputs))

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
    observer = _Observer()
    handles = [cell.register_forward_hook(observer.make_hook(name)) for name, cell in model.cells_and_names()]
    _, gradients = ms.value_and_grad(loss, None, parameters)(*inputs)
    for handle in handles:
        handle.remove()
    broken = [
        parameter.name
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if not _are_finite([gradient.astype(ms.float32).asnumpy()])
    ]
    metrics = {name: float(value) for name, value in take_step().items()}
    largest = sorted(observer.largest.items(), key=lambda item: item[1], reverse=True)
    return StepExamination(
        metrics=metrics,
        first_output=observer.first_output,
        has_finite_inputs=observer.has_finite_inputs,
        # the backward pass comes from the end of the network
        first_gradient=broken[-1] if broken else None,
        largest_outputs=tuple(largest[:_SHOWN]),
        operator=None,
    )


def _to_arrays(value: Any) -> list[np.ndarray[Any, Any]]:
    """Return the tensors of numbers with a fraction in ``value`` as arrays."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [item.astype(ms.float32).asnumpy() for item in values if isinstance(item, Tensor) and item.dtype in _REAL]


def _are_finite(arrays: list[np.ndarray[Any, Any]]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)
