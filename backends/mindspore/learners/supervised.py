"""The base of task learners on a MindSpore target whose network has an encoder somewhere inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import numpy as np
from mindspore import nn
from numpy.typing import NDArray

from ehm.backends.base import Processes
from ehm.backends.common import is_decayed, make_step_seed
from ehm.backends.mindspore.engine.averaging import MovingAverage, copy_model
from ehm.backends.mindspore.engine.optim import AdamW, Momentum, Optimizer
from ehm.backends.mindspore.engine.step import Training, draw_drop_path, refuse_unknown
from ehm.backends.mindspore.engine.tensors import Pixels
from ehm.backends.mindspore.models.adapters import (
    load_merged,
    load_updates,
    merge_arrays,
    seed_dropout,
    take_updates,
)
from ehm.backends.mindspore.models.blocks import recompute_activations
from ehm.backends.mindspore.models.tuning import find_layer, restrict_learning
from ehm.backends.resumable import ResumableTask
from ehm.config import TaskConfig
from ehm.config.data import refuse_other_images
from ehm.config.inputs import describe_changed_inputs
from ehm.models.shapes import spec_from_json
from ehm.models.weights import LoadedModel

__all__ = ["UNDECAYED", "SupervisedLearner"]

UNDECAYED = ("cls_token", "pos_embed", "reg_token")
"""Parameters of an encoder that weight decay leaves alone, beside vectors: as timm's ``no_weight_decay`` has them."""
_TRUST = 0.001
"""Coefficient of LARS in MAE's linear probe."""


class SupervisedLearner(ResumableTask):
    """Implements :class:`ehm.backends.base.TaskLearner`. Raises BackendError for settings that this backend lacks.

    ``model`` is the network of ``loaded``, or one that has it somewhere inside; ``encoder_prefix`` is what stands
    before the names of its parameters there. A learner sets ``_training`` when it has its loss. With
    ``optim.ema_decay`` a moving average of the weights is kept.
    """

    _training: Training

    _to_arrays = staticmethod(merge_arrays)
    _load_arrays = staticmethod(load_merged)
    _take_updates = staticmethod(take_updates)
    _load_updates = staticmethod(load_updates)

    def __init__(
        self, config: TaskConfig, processes: Processes, model: nn.Cell, loaded: LoadedModel, encoder_prefix: str = ""
    ) -> None:
        refuse_unknown(config, processes)
        self._config: Any = config
        self._rank = processes.rank
        self._spec = spec_from_json(loaded.architecture)
        self._encoder_prefix = encoder_prefix
        self.model: Any = model
        self.image_size = loaded.image_size
        self.architecture: Mapping[str, Any] = loaded.architecture
        self.notes = loaded.notes
        refuse_other_images(config.task, config.model.init, loaded.inputs.pixels)
        self.inputs = config.data.complete_inputs(loaded.inputs)
        if self.notes:  # without weights, there is nothing to differ from
            self.notes += describe_changed_inputs(self.inputs, loaded.inputs)
        self.notes += restrict_learning(
            model, self._spec, config.model.freeze, config.lora, config.run.seed, encoder_prefix
        )
        if config.optim.ema_decay is not None:
            self._average = copy_model(model)
            self._moving_average = MovingAverage(self._average, model)
        if config.run.grad_checkpointing:
            recompute_activations(model)
        self._pixels = Pixels(self.inputs.mean, self.inputs.std, self.inputs.pixels.white)

    def update_average(self, decay: float) -> None:
        """See :meth:`ehm.backends.base.TaskLearner.update_average`."""
        self._moving_average.update(decay)

    def _take_step(
        self, rows: int, take_inputs: Callable[[slice], tuple[Any, ...]], lr: float, weight_decay: float
    ) -> dict[str, SupportsFloat]:
        """Take a step of :class:`Training` in training mode, with random numbers of its own."""
        self.model.set_train()

        def take_part(part: slice) -> tuple[Any, ...]:
            if self._config.lora.dropout:
                # drop path has the numbers without these
                seed_dropout(self.model, [*self._step_numbers(), 2, part.start])
            return take_inputs(part)

        metrics = self._training.step(rows, take_part, lr, weight_decay)
        self._steps += 1
        return metrics

    def _normalise(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalise images on the host, as :class:`Pixels` does on the device: (..., H, W, 3) -> (..., 3, H, W)."""
        white = self.inputs.pixels.white
        offset = np.array(self.inputs.mean, np.float32) * white
        scale = np.array(self.inputs.std, np.float32) * white
        normalised: NDArray[np.float32] = (images.astype(np.float32) - offset) / scale
        return np.moveaxis(normalised, -1, -3)

    def _draw_drop_path(self, images: int) -> NDArray[np.float32] | None:
        """Draw this step's factors of drop path for the encoder's blocks; see :func:`draw_drop_path`."""
        return draw_drop_path(self._config.model.drop_path, self._spec.blocks, images, self._step_numbers())

    def _step_numbers(self) -> list[int]:
        """Return the numbers that seed what this step draws at random."""
        return make_step_seed(self._config.run.seed, self._steps, self._rank)

    def _create_optimizer(self) -> Optimizer:
        """Create the optimiser; of L layers, layer i learns at ``layer_decay ** (L - i)`` of the rate (BEiT, MAE).

        Everything outside the encoder is the last layer.
        """
        config = self._config
        prefix = self._encoder_prefix
        layers = {}
        for name, value in self.model.parameters_and_names():
            if value.requires_grad and name.startswith(prefix):
                layers[name] = find_layer(name.removeprefix(prefix), self._spec)
        above = max(layers.values(), default=0)
        if prefix:
            above += 1  # of a classifier, the head is itself among the layers
        undecayed = [f"{prefix}{name}" for name in UNDECAYED]
        trained = {}
        scales = []
        decaying = []
        for name, value in self.model.parameters_and_names():
            if value.requires_grad:
                trained[name] = value
                scales.append(config.layer_decay ** (above - layers.get(name, above)))
                decaying.append(is_decayed(name, value.ndim, undecayed))
        if config.optimizer == "adamw":
            return AdamW(trained, scales, decaying, config.optim.betas)
        return Momentum(trained, scales, decaying, trust=_TRUST if config.optimizer == "lars" else None)
