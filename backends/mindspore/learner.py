"""A masked autoencoder in pretraining on one MindSpore target: the similarity pass, the training step, its state.

Shapes: B images of H x W pixels, N patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsFloat

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from ehm.backends.base import ALONE, LearnerState, Processes
from ehm.backends.common import chunks, decays, split_average, with_average
from ehm.backends.mindspore.devices import Target, arithmetic
from ehm.backends.mindspore.models.mae import MaskedAutoencoder
from ehm.backends.mindspore.optim import AdamW
from ehm.backends.mindspore.tensors import Pixels, load_arrays, to_arrays
from ehm.backends.mindspore.training import Training, refuse_unknown
from ehm.config import TrainConfig
from ehm.errors import BackendError
from ehm.masking import split_mask

__all__ = ["MindsporeLearner"]

_PIECE = 64
"""Images that are looked at together; what is seen is sent to the host."""


class MindsporeLearner:
    """Implements :class:`ehm.backends.base.Learner`. Raises BackendError for settings that this backend lacks."""

    def __init__(self, config: TrainConfig, target: Target, processes: Processes = ALONE) -> None:
        if config.objective != "mae":
            raise BackendError(f"objective {config.objective}: the MindSpore backend has mae")
        if config.mask.similarity != "attention":
            raise BackendError(f"mask.similarity {config.mask.similarity}: the MindSpore backend has attention")
        if config.mask.build == "device":
            raise BackendError("mask.build device: the MindSpore backend builds trees on the host; use host or auto")
        refuse_unknown(config.run, processes)
        self._config = config
        self._dtype = arithmetic(config.optim.dtype, target)
        self.model = self._build()
        self.model.set_train()
        self._ema: MaskedAutoencoder | None = None
        if config.optim.ema_decay is not None:
            self._ema = self._build()
            self._ema.update_parameters_name("ema.")  # names are unique within a graph
            self._average = ms.jit(_averaging(self._ema, self.model, config.optim.ema_decay))
        if config.run.grad_checkpointing:
            for block in (*self.model.blocks, *self.model.decoder_blocks):
                block.recompute()
        trained = {name: value for name, value in self.model.parameters_and_names() if value.requires_grad}
        optimizer = AdamW(
            trained,
            scales=[1.0] * len(trained),
            decaying=[decays(name, value.ndim) for name, value in trained.items()],
            betas=config.optim.betas,
        )
        model, pixels = self.model, Pixels(config.data.mean, config.data.std)

        def loss(images: Tensor, visible: Tensor, masked: Tensor, restore: Tensor) -> Tensor:
            return model(pixels(images), visible, masked, restore)

        self._training = Training(loss, optimizer, config.optim, self._dtype, processes)
        seeing, blocks = (self._ema or model) if config.mask.source == "ema" else model, config.mask.blocks

        def similarity(images: Tensor) -> Tensor:
            return seeing.similarity(pixels(images), blocks)

        def saliency(images: Tensor) -> Tensor:
            return seeing.saliency(pixels(images))

        self._similarity, self._saliency = ms.jit(similarity), ms.jit(saliency)

    def similarity(self, images: NDArray[np.uint8]) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.Learner.similarity`. All of it is on its way when this returns."""
        return self._look(images, self._similarity)

    def saliency(self, images: NDArray[np.uint8]) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.Learner.saliency`. All of it is on its way when this returns."""
        return self._look(images, self._saliency)

    def train_step(
        self, images: NDArray[np.uint8], mask: NDArray[np.bool_], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Learner.train_step`."""
        parts = [part.astype(np.int32) for part in split_mask(mask)]
        views = len(mask) // len(images)

        def inputs(rows: slice) -> tuple[Tensor, ...]:
            masked = slice(rows.start * views, rows.stop * views)
            return Tensor(images[rows]), *(Tensor(part[masked]) for part in parts)

        metrics = self._training.step(len(images), inputs, lr, weight_decay)
        if self._ema is not None:
            self._average()
        return metrics

    def state(self) -> LearnerState:
        """See :meth:`ehm.backends.base.Learner.state`."""
        optimizer = self._training.state()
        if self._ema is not None:
            optimizer = with_average(optimizer, to_arrays(self._ema))
        return LearnerState(to_arrays(self.model), optimizer)

    def load(self, state: LearnerState) -> None:
        """See :meth:`ehm.backends.base.Learner.load`."""
        load_arrays(self.model, state.model)
        optimizer, average = split_average(state.optimizer)
        if self._ema is not None:
            load_arrays(self._ema, average)
        self._training.load(optimizer)

    def _look(self, images: NDArray[np.uint8], see: Callable[[Tensor], Tensor]) -> Iterable[NDArray[np.float32]]:
        """What ``see`` makes of ``images``, in pieces."""
        pieces = [
            see(Tensor(images[rows][start : start + _PIECE]))
            for rows in chunks(len(images), self._config.optim.accumulate)
            for start in range(0, rows.stop - rows.start, _PIECE)
        ]
        return (piece.asnumpy() for piece in pieces)

    def _build(self) -> MaskedAutoencoder:
        """The model as the seed starts it."""
        config = self._config
        return MaskedAutoencoder(
            config.spec,
            np.random.default_rng(config.run.seed),
            config.model.decoder_width,
            config.model.decoder_depth,
            config.model.decoder_heads,
            config.model.norm_pix_loss,
            self._dtype,
        )


def _averaging(average: MaskedAutoencoder, model: MaskedAutoencoder, decay: float) -> Any:
    """Exponential moving average of the parameters: ema = decay * ema + (1 - decay) * model."""
    theirs = ms.ParameterTuple(average.get_parameters())
    ours = ms.ParameterTuple(model.get_parameters())

    each, share = ops.HyperMap(), 1 - decay

    def update() -> Any:
        return each(ops.partial(_approach, share), theirs, ours)

    return update


def _approach(share: float, average: Tensor, value: Tensor) -> Tensor:
    return ops.assign_add(average, (value - average) * share)
