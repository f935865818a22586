"""What every training step does around its loss: accumulation, loss scaling, several processes, clipping."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, SupportsFloat

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.amp import DynamicLossScaler
from numpy.typing import NDArray

from ehm.backends.base import Processes
from ehm.backends.common import SCALE, TRACKER, split_batch
from ehm.backends.mindspore.engine.optim import Optimizer
from ehm.backends.mindspore.engine.tensors import set_values
from ehm.config import OptimConfig, RunConfig
from ehm.errors import BackendError
from ehm.storage.arrays import Arrays

__all__ = ["Training", "draw_drop_path", "refuse_unknown", "set_deterministic"]

_FIRST_SCALE, _GROWTH, _WINDOW = 2.0**16, 2, 2000  # as torch's GradScaler begins, grows and waits
_EACH, _SUM, _PRODUCT = ops.HyperMap(), ops.Add(), ops.Mul()  # a list comprehension takes ten times as long to compile


class Training:
    """Steps of ``optimizer`` on the mean of ``loss(*inputs)``, in graphs that MindSpore compiles at the first step."""

    def __init__(
        self,
        loss: Callable[..., Tensor],
        optimizer: Optimizer,
        optim: OptimConfig,
        dtype: Any,
        processes: Processes,
        parts: int | None = None,
    ) -> None:
        self._optimizer, self._optim = optimizer, optim
        self._parts = optim.accumulate if parts is None else parts
        self._scaler = DynamicLossScaler(_FIRST_SCALE, _GROWTH, _WINDOW) if dtype == ms.float16 else None

        def scaled(factor: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            value = loss(*inputs)
            return value * factor, value

        self._gradients = ms.jit(ms.value_and_grad(scaled, None, optimizer.parameters, has_aux=True))
        self._add = ms.jit(_add_gradients)
        self._prepare = ms.jit(_build_preparation(optimizer, optim.clip_grad, self._scaler is not None, processes))

    def step(
        self, rows: int, inputs: Callable[[slice], tuple[Tensor | None, ...]], lr: float, weight_decay: float
    ) -> dict[str, SupportsFloat]:
        """One step on a batch of ``rows`` images; ``inputs`` gives what the loss of a slice of them takes.

        The batch is split into ``parts`` (``optim.accumulate`` if left out), whose gradients travel between processes
        once. The metrics ``loss`` and, where gradients are clipped, ``grad_norm`` stay on the device; in float16 the
        host waits once.
        """
        scale = Tensor(1.0, ms.float32) if self._scaler is None else self._scaler.scale_value.value()
        total: Any = 0.0
        gradients: Any = None
        for part in split_batch(rows, self._parts):
            share = (part.stop - part.start) / rows
            (_, value), found = self._gradients(scale * share, *inputs(part))
            total = total + value * share
            gradients = found if gradients is None else self._add(*gradients, *found)
        total, norm, *gradients = self._prepare(total, scale, *gradients)
        metrics: dict[str, SupportsFloat] = {"loss": total}
        if self._optim.clip_grad is not None:
            metrics["grad_norm"] = norm
        finite = self._scaler is None or bool(np.isfinite(norm.asnumpy()))
        if self._scaler is not None:
            self._scaler.adjust(Tensor(finite))
        if finite:
            self._optimizer.step(gradients, lr, weight_decay)
        return metrics

    def state(self) -> Arrays:
        """The optimiser's arrays, and the loss scale where there is one."""
        arrays = self._optimizer.state()
        if self._scaler is not None:
            arrays[SCALE] = np.array(self._scaler.scale_value.asnumpy(), np.float32)
            arrays[TRACKER] = np.array(self._scaler.counter.asnumpy(), np.int32)
        return arrays

    def load(self, arrays: Arrays) -> None:
        """Go on from what :meth:`state` gave, whatever type that run computed in; CheckpointError where it misfits."""
        moments = dict(arrays)
        scale, tracker = moments.pop(SCALE, None), moments.pop(TRACKER, None)
        self._optimizer.load(moments)
        if scale is not None and tracker is not None and self._scaler is not None:
            set_values(self._scaler.scale_value, scale)
            set_values(self._scaler.counter, tracker)


def refuse_unknown(run: RunConfig, processes: Processes) -> None:
    """Raise BackendError for settings of a run that this backend does not have."""
    if run.parallel == "fsdp" and processes.size > 1:
        raise BackendError(
            "run.parallel fsdp: the MindSpore backend keeps a copy of the model in each process; use ddp"
        )


def draw_drop_path(rate: float, depth: int, images: int, numbers: list[int]) -> NDArray[np.float32] | None:
    """Factors (2 * depth, images, 1, 1) of branches: 0 or 1 / (1 - p), p rising from 0 to ``rate`` over the blocks.

    They follow from ``numbers`` alone, as the whole of a resumed run needs; None where no branch is left out.
    """
    if not rate:
        return None
    uniform = np.random.default_rng(numbers).random((2 * depth, images, 1, 1))
    kept = 1 - np.linspace(0, rate, depth).repeat(2).reshape(-1, 1, 1, 1)
    return ((uniform < kept) / kept).astype(np.float32)


def set_deterministic(wanted: bool) -> None:
    """Let only deterministic kernels run in this process, where ``wanted``; MindSpore takes it back for none."""
    if wanted and ms.get_context("deterministic") != "ON":
        os.environ.setdefault("HCCL_DETERMINISTIC", "true")
        ms.set_deterministic(True)


def _add_gradients(*gradients: Tensor) -> tuple[Tensor, ...]:
    """The sum of two equally long halves."""
    half = len(gradients) // 2
    return _EACH(_SUM, gradients[:half], gradients[half:])


def _build_preparation(
    optimizer: Optimizer, clip: float | None, scaled: bool, processes: Processes
) -> Callable[..., tuple[Tensor, ...]]:
    """Of the loss and the gradients of this process: their means over all, the norm, and the gradients, clipped."""
    several, size = processes.size > 1, processes.size
    if several:
        reduce, total_of_all = nn.DistributedGradReducer(optimizer.parameters, True, size), ops.AllReduce()

    def prepare(total: Tensor, scale: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        norm = total
        if several:
            gradients = reduce(gradients)
            total = total_of_all(total) / size
        if scaled:
            gradients = _EACH(ops.partial(_PRODUCT, 1 / scale), gradients)
        if scaled or clip is not None:
            norm = ops.sqrt(ops.AddN()(_EACH(_square_sum, gradients)))
        if clip is not None:
            gradients = _EACH(ops.partial(_PRODUCT, ops.minimum(clip / (norm + 1e-6), 1.0)), gradients)
        return total, norm, *gradients

    return prepare


def _square_sum(gradient: Tensor) -> Tensor:
    return ops.ReduceSum()(ops.square(gradient))
