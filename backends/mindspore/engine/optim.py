"""Optimisers as torch has them, each compiled as a whole, and their state as plain arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from ehm.backends.mindspore.engine.graphs import compile_graph
from ehm.backends.mindspore.engine.tensors import set_values
from ehm.errors import CheckpointError
from ehm.storage.arrays import Arrays

__all__ = ["AdamW", "Momentum", "Optimizer"]

_EPSILON = 1e-8


class Optimizer(ABC):
    """The base of all optimisers, whose state has torch's names.

    ``scales`` are factors of the learning rate and ``decaying`` says whether weight decay applies, for each parameter.
    """

    slots: tuple[str, ...]
    """Names of the arrays that each parameter has."""
    counts: bool
    """True if the number of steps is part of the state."""

    def __init__(self, parameters: Mapping[str, Parameter], scales: Sequence[float], decaying: Sequence[bool]) -> None:
        self._names = tuple(parameters)
        self.parameters = ParameterTuple(parameters.values())
        self._scales = tuple(scales)
        self._decaying = tuple(decaying)
        self._moments = [self.parameters.clone(prefix=slot, init="zeros") for slot in self.slots]
        self._count = Parameter(Tensor(0.0, ms.float32), name="step", requires_grad=False)
        self._update = compile_graph(self._build_update())

    def step(self, gradients: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        """Move the parameters; ``gradients`` are in their order."""
        self._update(Tensor(lr, ms.float32), Tensor(weight_decay, ms.float32), *gradients)

    def state(self) -> Arrays:
        """Copy the state as ``{parameter}/{slot}``, such as ``head.weight/exp_avg``; empty before the first step."""
        arrays: Arrays = {}
        # torch has no moments before the first step either
        if self._count.asnumpy() > 0:
            for slot, moments in zip(self.slots, self._moments, strict=True):
                for name, moment in zip(self._names, moments, strict=True):
                    arrays[f"{name}/{slot}"] = moment.asnumpy().copy()
            if self.counts:
                # torch counts for each parameter
                for name in self._names:
                    arrays[f"{name}/step"] = self._count.asnumpy().copy()
        return arrays

    def load(self, arrays: Arrays) -> None:
        """Restore the state of :meth:`state`, or of torch's optimiser; raises CheckpointError if it does not fit."""
        slots = (*self.slots, "step") if self.counts else self.slots
        known = {f"{name}/{slot}" for name in self._names for slot in slots}
        for key in arrays:
            if key not in known:
                raise CheckpointError(f"the optimiser's {key} belongs to no parameter of this model")
        if arrays and known - arrays.keys():
            raise CheckpointError(f"the optimiser's {min(known - arrays.keys())} is missing")
        # torch counts steps for each parameter, and this optimiser for all of them
        steps = float(bool(arrays))
        if arrays and self.counts:
            numbers = {float(arrays[f"{name}/step"]) for name in self._names}
            if len(numbers) > 1:
                raise CheckpointError("the optimiser's parameters have not all made the same number of steps")
            steps = numbers.pop()
        for slot, moments in zip(self.slots, self._moments, strict=True):
            for name, moment in zip(self._names, moments, strict=True):
                array = arrays.get(f"{name}/{slot}", np.zeros(moment.shape, np.float32))
                if array.shape != moment.shape:
                    raise CheckpointError(f"the optimiser's {name}/{slot} is {array.shape}, not {tuple(moment.shape)}")
                set_values(moment, array)
        set_values(self._count, np.array(steps, np.float32))

    @abstractmethod
    def _build_update(self) -> Callable[..., Any]:
        """Return the function of a learning rate, a weight decay and gradients that :meth:`step` compiles."""


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) as torch computes it, in one operator a parameter.

    The operator is MindSpore's fused ``AdamWeightDecay``, which both targets have, and which corrects no bias. The
    corrections m / c1 and v / c2**2 are put into its scalars instead: with r = c2 / c1, a rate of lr * r, an epsilon of
    eps * c2 and a decay of wd / r make the same step. ``mindspore.experimental.optim.AdamW`` takes a dozen operators a
    parameter and the memory of a third moment (2.10).
    """

    slots = ("exp_avg", "exp_avg_sq")
    counts = True

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        scales: Sequence[float],
        decaying: Sequence[bool],
        betas: tuple[float, float],
    ) -> None:
        self._betas = betas
        super().__init__(parameters, scales, decaying)

    def _build_update(self) -> Callable[..., Any]:
        # local names, because a compiled graph takes no attributes of a Python object
        parameters = self.parameters
        count = self._count
        firsts, seconds = self._moments
        beta1, beta2 = self._betas
        scales = self._scales
        decaying = self._decaying
        fused = ops.AdamWeightDecay()
        apply_to_each = ops.HyperMap()

        def move(
            rate: Tensor,
            decay: Tensor,
            epsilon: Tensor,
            parameter: Parameter,
            first: Parameter,
            second: Parameter,
            scale: float,
            decays: bool,
            gradient: Tensor,
        ) -> Any:
            if not decays:
                decay = decay * 0  # the operator needs a tensor
            return fused(parameter, first, second, rate * scale, beta1, beta2, epsilon, decay, gradient)

        def update(lr: Tensor, weight_decay: Tensor, *gradients: Tensor) -> Any:
            step = ops.assign_add(count, 1.0)
            c1 = 1 - ops.pow(beta1, step)
            c2 = ops.sqrt(1 - ops.pow(beta2, step))
            move_one = ops.partial(move, lr * c2 / c1, weight_decay * c1 / c2, _EPSILON * c2)
            return apply_to_each(move_one, parameters, firsts, seconds, scales, decaying, gradients)

        return update


class Momentum(Optimizer):
    """SGD with momentum 0.9 and, with ``trust``, LARS (You et al., 2017) as in MAE's linear probe.

    LARS scales the update of a matrix w with gradient g by trust ||w|| / (||g|| + wd ||w||), as timm's ``Lars`` does;
    vectors are neither scaled nor decayed.
    """

    slots = ("momentum_buffer",)
    counts = False

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        scales: Sequence[float],
        decaying: Sequence[bool],
        trust: float | None = None,
    ) -> None:
        self._trust = trust
        super().__init__(parameters, scales, decaying)

    def _build_update(self) -> Callable[..., Any]:
        parameters = self.parameters
        count = self._count
        (buffers,) = self._moments
        trust = self._trust
        scales = self._scales
        decaying = self._decaying
        apply_to_each = ops.HyperMap()

        def move(
            lr: Tensor,
            decay: Tensor,
            parameter: Parameter,
            buffer: Parameter,
            scale: float,
            decays: bool,
            gradient: Tensor,
        ) -> Any:
            change = gradient + parameter * decay if decays else gradient
            if trust is not None and parameter.ndim > 1:
                weight_norm = _measure_norm(parameter)
                gradient_norm = _measure_norm(gradient)
                length = gradient_norm + weight_norm * decay if decays else gradient_norm
                known = ops.logical_and(weight_norm > 0, gradient_norm > 0)
                change = change * ops.select(known, trust * weight_norm / length, ops.ones_like(weight_norm))
            return ops.assign_add(parameter, ops.assign(buffer, buffer * 0.9 + change) * (-lr * scale))

        def update(lr: Tensor, weight_decay: Tensor, *gradients: Tensor) -> Any:
            ops.assign_add(count, 1.0)
            move_one = ops.partial(move, lr, weight_decay)
            return apply_to_each(move_one, parameters, buffers, scales, decaying, gradients)

        return update


def _measure_norm(value: Tensor) -> Tensor:
    return ops.sqrt(ops.ReduceSum()(ops.square(value)))
