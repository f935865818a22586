"""The parts of a training step around its loss: accumulation, loss scaling, several processes, clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.amp import DynamicLossScaler
from numpy.typing import NDArray

from ehm.backends.base import Processes
from ehm.backends.common import SCALE, TRACKER, split_batch
from ehm.backends.mindspore.engine.distributed import build_mean
from ehm.backends.mindspore.engine.graphs import compile_graph
from ehm.backends.mindspore.engine.optim import Optimizer
from ehm.backends.mindspore.engine.reduction import build_averaging
from ehm.backends.mindspore.engine.tensors import set_values
from ehm.config import OptimConfig, TaskConfig, TokenizerConfig, TrainConfig
from ehm.errors import BackendError
from ehm.storage.arrays import Arrays

__all__ = ["Training", "draw_drop_path", "refuse_unknown", "set_deterministic"]

# torch's GradScaler begins with this scale, grows by this factor, and waits for so many steps
_FIRST_SCALE = 2.0**16
_GROWTH = 2
_WINDOW = 2000
# maps over gradients; a list comprehension takes ten times as long to compile
_APPLY_TO_EACH = ops.HyperMap()
_SUM = ops.Add()
_PRODUCT = ops.Mul()


class Training:
    """Steps of ``optimizer`` on the mean of ``loss(*inputs)``, in graphs that MindSpore compiles at the first step.

    With ``figures`` the loss comes as the first of several tensors; the others, means over images too, are measured
    with it and become metrics of these names.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        optimizer: Optimizer,
        optim: OptimConfig,
        dtype: Any,
        processes: Processes,
        parts: int | None = None,
        figures: tuple[str, ...] = (),
    ) -> None:
        self._optimizer = optimizer
        self._optim = optim
        self._parts = optim.accumulate if parts is None else parts
        self._scaler = DynamicLossScaler(_FIRST_SCALE, _GROWTH, _WINDOW) if dtype == ms.float16 else None

        self._figures = figures
        self._average = compile_graph(build_mean(processes))

        def scale_loss(factor: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            if not figures:
                value = loss(*inputs)
                return value * factor, value
            measured = loss(*inputs)
            return measured[0] * factor, *measured

        self._gradients = compile_graph(ms.value_and_grad(scale_loss, None, optimizer.parameters, has_aux=True))
        self._add = compile_graph(_add_gradients)
        self._prepare = compile_graph(
            _build_preparation(optimizer, optim.clip_grad, self._scaler is not None, processes)
        )

    @property
    def parameters(self) -> Any:
        """The parameters that are trained."""
        return self._optimizer.parameters

    def step(
        self, rows: int, inputs: Callable[[slice], tuple[Tensor | None, ...]], lr: float, weight_decay: float
    ) -> dict[str, SupportsFloat]:
        """Take one step on a batch of ``rows`` images; ``inputs`` returns the loss's inputs for a slice of them.

        The batch is split into ``parts`` (``optim.accumulate`` if left out), whose gradients travel between processes
        once. The metrics ``loss`` and ``grad_norm``, the length of the gradient before it is clipped, stay on the
        device; in float16 the host waits once.
        """
        scale = Tensor(1.0, ms.float32)
        if self._scaler is not None:
            scale = self._scaler.scale_value.value()
        total: Any = 0.0  # stays on the device once a loss is added
        figures: list[Any] = [0.0] * len(self._figures)
        gradients: Any = None
        for part in split_batch(rows, self._parts):
            share = (part.stop - part.start) / rows
            (_, value, *measured), part_gradients = self._gradients(scale * share, *inputs(part))
            total = total + value * share
            figures = [figure + more * share for figure, more in zip(figures, measured, strict=True)]
            gradients = part_gradients if gradients is None else self._add(*gradients, *part_gradients)
        total, norm, *gradients = self._prepare(total, scale, *gradients)
        finite = True
        if self._scaler is not None:
            finite = bool(np.isfinite(norm.asnumpy()))
            self._scaler.adjust(Tensor(finite))
        if finite:
            self._optimizer.step(gradients, lr, weight_decay)
        metrics = {"loss": total, "grad_norm": norm}
        if figures:
            metrics |= dict(zip(self._figures, self._average(*figures), strict=True))
        return metrics

    def state(self) -> Arrays:
        """Return the optimiser's arrays, and the loss scale if there is one."""
        arrays = self._optimizer.state()
        if self._scaler is not None:
            arrays[SCALE] = np.array(self._scaler.scale_value.asnumpy(), np.float32)
            arrays[TRACKER] = np.array(self._scaler.counter.asnumpy(), np.int32)
        return arrays

    def load(self, arrays: Arrays) -> None:
        """Continue from the arrays of :meth:`state`, whatever type that run computed in.

        Raises CheckpointError if they do not fit.
        """
        moments = dict(arrays)
        scale = moments.pop(SCALE, None)
        tracker = moments.pop(TRACKER, None)
        self._optimizer.load(moments)
        if scale is not None and tracker is not None and self._scaler is not None:
            set_values(self._scaler.scale_value, scale)
            set_values(self._scaler.counter, tracker)


def refuse_unknown(config: TrainConfig | TaskConfig | TokenizerConfig, processes: Processes) -> None:
    """Raise BackendError for settings of a run that this backend does not have."""
    if config.optim.tf32:
        raise BackendError("optim.tf32: the MindSpore backend rounds no factors of float32 products; leave it false")
    if config.run.parallel == "fsdp" and processes.size > 1:
        raise BackendError(
            "run.parallel fsdp: the MindSpore backend keeps a copy of the model in each process; use ddp"
        )


def draw_drop_path(rate: float, depth: int, images: int, numbers: list[int]) -> NDArray[np.float32] | None:
    """Draw factors (2 * depth, images, 1, 1) of branches: 0 or 1 / (1 - p), p rising from 0 to ``rate`` over blocks.

    They follow from ``numbers`` alone, so that a resumed run draws the same; None if no branch is left out.
    """
    if not rate:
        return None
    uniform = np.random.default_rng(numbers).random((2 * depth, images, 1, 1))
    kept = 1 - np.linspace(0, rate, depth).repeat(2).reshape(-1, 1, 1, 1)
    return ((uniform < kept) / kept).astype(np.float32)


def set_deterministic(wanted: bool) -> None:
    """Let only deterministic kernels run in this process if ``wanted``; MindSpore cannot take that back."""
    if wanted and ms.get_context("deterministic") != "ON":
        ms.set_deterministic(True)


def _add_gradients(*gradients: Tensor) -> tuple[Tensor, ...]:
    """Add the two halves of ``gradients``, which are equally long."""
    half = len(gradients) // 2
    return _APPLY_TO_EACH(_SUM, gradients[:half], gradients[half:])


def _build_preparation(
    optimizer: Optimizer, clip: float | None, scaled: bool, processes: Processes
) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that averages loss and gradients over processes, measures the norm, and clips."""
    several = processes.size > 1
    if several:
        shapes = [(), *(tuple(parameter.shape) for parameter in optimizer.parameters)]
        average = build_averaging(shapes, processes.size)

    def prepare(total: Tensor, scale: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        if several:
            averaged = average((total, *gradients))
            total = averaged[0]
            gradients = averaged[1:]
        if scaled:
            gradients = _APPLY_TO_EACH(ops.partial(_PRODUCT, 1 / scale), gradients)
        norm = ops.sqrt(ops.AddN()(_APPLY_TO_EACH(_sum_squares, gradients)))
        if clip is not None:
            # the small number is that of torch's clip_grad_norm_
            gradients = _APPLY_TO_EACH(ops.partial(_PRODUCT, ops.minimum(clip / (norm + 1e-6), 1.0)), gradients)
        return total, norm, *gradients

    return prepare


def _sum_squares(gradient: Tensor) -> Tensor:
    return ops.ReduceSum()(ops.square(gradient))
