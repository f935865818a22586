"""AdamW with decay groups and layer-wise rates, in one operator a parameter, and its state as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops
from numpy.typing import NDArray

from ehm.backends.base import Arrays
from ehm.backends.mindspore.tensors import put
from ehm.errors import CheckpointError

__all__ = ["AdamW"]

_EPSILON = 1e-8
_SLOTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) as torch computes it.

    MindSpore's fused ``AdamWeightDecay``, which both of its targets have, corrects no bias. The corrections m / c1 and
    v / c2**2 are put into its scalars instead: with r = c2 / c1, a rate of lr * r, an epsilon of eps * c2 and a decay
    of wd / r make the same step. ``mindspore.experimental.optim.AdamW`` does without, in a dozen operators a parameter
    and with the memory of a third moment (2.10).

    ``scales`` are factors of the learning rate, ``decaying`` says where weight decay applies, both for each parameter.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        scales: Sequence[float],
        decaying: Sequence[bool],
        betas: tuple[float, float],
    ) -> None:
        self._names = tuple(parameters)
        self.parameters = ParameterTuple(parameters.values())
        self._first, self._second = (self.parameters.clone(prefix=slot, init="zeros") for slot in _SLOTS)
        self._step = Parameter(Tensor(0.0, ms.float32), name="step", requires_grad=False)
        self._update = ms.jit(self._compose(tuple(scales), tuple(decaying), *betas))

    def step(self, gradients: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        """Move the parameters; ``gradients`` come in their order."""
        self._update(Tensor(lr, ms.float32), Tensor(weight_decay, ms.float32), *gradients)

    def state(self) -> Arrays:
        """Copies as ``{parameter}/{slot}`` with torch's names, ``head.weight/exp_avg``; none before the first step."""
        step: NDArray[np.float32] = self._step.asnumpy()
        arrays: Arrays = {}
        for name, first, second in zip(self._names, self._first, self._second, strict=True):
            if step > 0:
                moments = (first.asnumpy().copy(), second.asnumpy().copy())
                arrays |= dict(zip((f"{name}/{slot}" for slot in _SLOTS), moments, strict=True))
                arrays[f"{name}/step"] = step.copy()
        return arrays

    def load(self, arrays: Arrays) -> None:
        """Put back what :meth:`state`, or torch's optimiser, gave; CheckpointError where something does not fit."""
        known = {f"{name}/{slot}" for name in self._names for slot in (*_SLOTS, "step")}
        for key in arrays:
            if key not in known:
                raise CheckpointError(f"the optimiser's {key} belongs to no parameter of this model")
        steps = {float(array) for key, array in arrays.items() if key.endswith("/step")}
        if arrays and (len(steps) != 1 or arrays.keys() != known):
            raise CheckpointError("the optimiser's moments or steps are not those of one AdamW over all parameters")
        for name, *moments in zip(self._names, self._first, self._second, strict=True):
            for slot, parameter in zip(_SLOTS, moments, strict=True):
                array = arrays.get(f"{name}/{slot}", np.zeros(parameter.shape, np.float32))
                if array.shape != parameter.shape:
                    raise CheckpointError(
                        f"the optimiser's {name}/{slot} is {array.shape}, not {tuple(parameter.shape)}"
                    )
                put(parameter, array)
        put(self._step, np.array(steps.pop() if steps else 0.0, np.float32))

    def _compose(self, scales: tuple[float, ...], decaying: tuple[bool, ...], beta1: float, beta2: float) -> Any:
        parameters, firsts, seconds, count = self.parameters, self._first, self._second, self._step
        fused, each = ops.AdamWeightDecay(), ops.HyperMap()

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
            decay = decay if decays else decay * 0
            return fused(parameter, first, second, rate * scale, beta1, beta2, epsilon, decay, gradient)

        def update(lr: Tensor, weight_decay: Tensor, *gradients: Tensor) -> Any:
            step = ops.assign_add(count, 1.0)
            c1 = 1 - ops.pow(beta1, step)
            c2 = ops.sqrt(1 - ops.pow(beta2, step))
            one = ops.partial(move, lr * c2 / c1, weight_decay * c1 / c2, _EPSILON * c2)
            return each(one, parameters, firsts, seconds, scales, decaying, gradients)

        return update
