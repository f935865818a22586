"""A masked image model in pretraining on one MindSpore target: the similarity pass, the training step, its state.

Shapes: B images of H x W pixels, N output tokens of the encoder, U mask units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsFloat

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes
from ehm.backends.common import STEP, chunks, decays, entropy, undecayed
from ehm.backends.mindspore.engine.devices import Target, arithmetic
from ehm.backends.mindspore.engine.optim import AdamW
from ehm.backends.mindspore.engine.step import Training, drop_path, refuse_unknown
from ehm.backends.mindspore.engine.tensors import Pixels, load_arrays, to_arrays
from ehm.backends.mindspore.models.blocks import Block, cosine_similarity
from ehm.backends.mindspore.models.loading import begin_with
from ehm.backends.mindspore.models.pretraining import Model, build_model
from ehm.config import TrainConfig
from ehm.errors import BackendError
from ehm.masking import split_mask, spread_mask
from ehm.storage.arrays import LearnerState, split_average, with_average

__all__ = ["MindsporeLearner"]

_PIECE = 64
"""Images whose similarity is computed and sent to the host together."""


class MindsporeBatch:
    """Implements :class:`ehm.backends.base.PreparedBatch`."""

    def __init__(self, learner: MindsporeLearner, images: NDArray[np.uint8]) -> None:
        self.images = images
        self._learner = learner

    def similarity(self) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.similarity`. All of it is on its way when this returns."""
        return self._learner.compute_similarity(self.images)

    def saliency(self) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.saliency`. All of it is on its way when this returns."""
        return self._learner.compute_saliency(self.images)


class MindsporeLearner:
    """Implements :class:`ehm.backends.base.Learner`. Raises BackendError for settings that this backend lacks."""

    def __init__(self, config: TrainConfig, target: Target, processes: Processes = ALONE) -> None:
        if config.mask.build == "device":
            raise BackendError("mask.build device: the MindSpore backend builds trees on the host; use host or auto")
        refuse_unknown(config.run, processes)
        self._config, self._rank, self._steps = config, processes.rank, 0
        dtype = arithmetic(config.optim.dtype, target)
        self.model = build_model(config, dtype)
        self.notes = begin_with(self.model, config)
        self.model.set_train()
        self._ema: Model | None = None
        if config.optim.ema_decay is not None:
            self._ema = build_model(config, dtype)
            begin_with(self._ema, config)
            self._ema.update_parameters_name("ema.")  # names are unique within a graph
            self._average = ms.jit(_averaging(self._ema, self.model, config.optim.ema_decay))
        if config.run.grad_checkpointing:
            for _, cell in self.model.cells_and_names():
                if isinstance(cell, Block):
                    cell.recompute()
        trained = {name: value for name, value in self.model.parameters_and_names() if value.requires_grad}
        skip = undecayed(config.objective)
        optimizer = AdamW(
            trained,
            scales=[1.0] * len(trained),
            decaying=[decays(name, value.ndim, skip) for name, value in trained.items()],
            betas=config.optim.betas,
        )
        model, pixels = self.model, Pixels(config.data.mean, config.data.std)

        def loss(images: Tensor, *mask: Tensor) -> Tensor:
            return model(pixels(images), *mask)

        self._training = Training(loss, optimizer, config.optim, dtype, processes)
        seeing, blocks = (self._ema or model) if config.mask.source == "ema" else model, config.mask.blocks
        pool = _pooling(config.spec.grid, config.units)

        def attention(images: Tensor) -> Tensor:
            return pool(pool(seeing.similarity(pixels(images), blocks)).swapaxes(1, 2))

        def cosine(images: Tensor) -> Tensor:
            return cosine_similarity(pool(seeing.features(pixels(images), blocks).swapaxes(1, 2)).swapaxes(1, 2))

        def saliency(images: Tensor) -> Tensor:
            return pool(seeing.saliency(pixels(images)))

        self._similarity = ms.jit(attention if config.mask.similarity == "attention" else cosine)
        self._saliency = ms.jit(saliency)

    def prepare(self, images: NDArray[np.uint8]) -> MindsporeBatch:
        """See :meth:`ehm.backends.base.Learner.prepare`."""
        return MindsporeBatch(self, images)

    def compute_similarity(self, images: NDArray[np.uint8]) -> Iterable[NDArray[np.float32]]:
        """Compute the similarities (b, U, U) of the mask units of ``images``, in pieces."""
        return self._apply_to_pieces(images, self._similarity)

    def compute_saliency(self, images: NDArray[np.uint8]) -> Iterable[NDArray[np.float32]]:
        """Compute the saliencies (b, U) of the mask units of ``images``, in pieces."""
        return self._apply_to_pieces(images, self._saliency)

    def train_step(
        self, batch: MindsporeBatch, mask: NDArray[np.bool_], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Learner.train_step`."""
        images = batch.images
        config = self._config
        factor = config.unit // config.spec.stride
        parts = [part.astype(np.int32) for part in split_mask(spread_mask(mask, config.units, factor))]
        views = len(mask) // len(images)
        numbers = entropy(config.run.seed, self._steps, self._rank)
        keep = drop_path(config.model.drop_path, config.spec.blocks, len(mask), numbers)

        def inputs(rows: slice) -> tuple[Tensor, ...]:
            masked = slice(rows.start * views, rows.stop * views)
            kept = () if keep is None else (Tensor(keep[:, masked]),)
            return Tensor(images[rows]), *(Tensor(part[masked]) for part in parts), *kept

        metrics = self._training.step(len(images), inputs, lr, weight_decay)
        self._steps += 1
        if self._ema is not None:
            self._average()
        return metrics

    def state(self) -> LearnerState:
        """See :meth:`ehm.backends.base.Learner.state`."""
        optimizer = self._training.state()
        if self._config.model.drop_path:
            optimizer[STEP] = np.array(self._steps, np.int64)
        if self._ema is not None:
            optimizer = with_average(optimizer, to_arrays(self._ema))
        return LearnerState(to_arrays(self.model), optimizer)

    def load(self, state: LearnerState) -> None:
        """See :meth:`ehm.backends.base.Learner.load`."""
        load_arrays(self.model, state.model)
        optimizer, average = split_average(state.optimizer)
        if self._ema is not None:
            load_arrays(self._ema, average)
        self._steps = int(optimizer.pop(STEP, np.array(0)))
        self._training.load(optimizer)

    def _apply_to_pieces(
        self, images: NDArray[np.uint8], function: Callable[[Tensor], Tensor]
    ) -> Iterable[NDArray[np.float32]]:
        """Apply ``function`` to ``images``, piece by piece."""
        pieces = [
            function(Tensor(images[rows][start : start + _PIECE]))
            for rows in chunks(len(images), self._config.optim.accumulate)
            for start in range(0, rows.stop - rows.start, _PIECE)
        ]
        return (piece.asnumpy() for piece in pieces)


def _pooling(grid: tuple[int, int], units: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Mean over the tokens of each mask unit, along the last axis: (..., N) -> (..., U)."""
    (height, width), (down, across) = grid, units

    def pool(values: Tensor) -> Tensor:
        if units == grid:
            return values
        cells = values.reshape((*values.shape[:-1], down, height // down, across, width // across))
        return cells.mean(axis=(-3, -1)).reshape((*values.shape[:-1], down * across))

    return pool


def _averaging(average: Model, model: Model, decay: float) -> Any:
    """Exponential moving average of the parameters: ema = decay * ema + (1 - decay) * model."""
    theirs = ms.ParameterTuple(average.get_parameters())
    ours = ms.ParameterTuple(model.get_parameters())

    each, share = ops.HyperMap(), 1 - decay

    def update() -> Any:
        return each(ops.partial(_approach, share), theirs, ours)

    return update


def _approach(share: float, average: Tensor, value: Tensor) -> Tensor:
    return ops.assign_add(average, (value - average) * share)
