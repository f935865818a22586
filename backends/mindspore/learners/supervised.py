"""The base of task learners on a MindSpore target whose network has an encoder somewhere inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import nn
from numpy.typing import NDArray

from ehm.backends.base import Processes
from ehm.backends.common import is_decayed, step_entropy
from ehm.backends.mindspore.engine.optim import AdamW, Momentum, Optimizer
from ehm.backends.mindspore.engine.step import draw_drop_path, refuse_tuning, refuse_unknown
from ehm.backends.mindspore.engine.tensors import Pixels, load_arrays, to_arrays
from ehm.backends.mindspore.models.blocks import Block
from ehm.backends.mindspore.models.tuning import freeze_blocks, layer_of
from ehm.backends.resumable import ResumableLearner
from ehm.config import TaskConfig
from ehm.config.data import refuse_other_images
from ehm.config.inputs import differing_inputs
from ehm.models.shapes import spec_from_json
from ehm.models.weights import LoadedModel

__all__ = ["UNDECAYED", "SupervisedLearner"]

UNDECAYED = ("cls_token", "pos_embed", "reg_token")
"""Parameters of an encoder that weight decay leaves alone, beside vectors: as timm's ``no_weight_decay`` has them."""


class SupervisedLearner(ResumableLearner):
    """Implements :class:`ehm.backends.base.TaskLearner`. Raises BackendError for settings that this backend lacks.

    ``model`` has the network of ``loaded`` as ``encoder``, the prefix of whose parameters' names is ``encoder_prefix``.
    """

    _to_arrays = staticmethod(to_arrays)
    _load_arrays = staticmethod(load_arrays)

    def __init__(
        self, config: TaskConfig, processes: Processes, model: nn.Cell, loaded: LoadedModel, encoder_prefix: str
    ) -> None:
        refuse_unknown(config, processes)
        refuse_tuning(config)
        self._config: Any = config
        self._rank = processes.rank
        self._spec = spec_from_json(loaded.architecture)
        self._encoder_prefix = encoder_prefix
        self.model: Any = model
        self.image_size = loaded.image_size
        self.architecture: Mapping[str, Any] = loaded.architecture
        self.notes = loaded.notes
        refuse_other_images(config.task, config.model.init, loaded.inputs.pixels)
        self.inputs = config.data.input_spec(loaded.inputs)
        if self.notes:  # without weights, there is nothing to differ from
            self.notes += differing_inputs(self.inputs, loaded.inputs)
        self.notes += freeze_blocks(model, self._spec, config.model.freeze, encoder_prefix)
        if config.run.grad_checkpointing:
            for _, cell in model.cells_and_names():
                if isinstance(cell, Block):
                    cell.recompute()
        self._pixels = Pixels(self.inputs.mean, self.inputs.std, self.inputs.pixels.white)

    def _draw_drop_path(self, images: int) -> NDArray[np.float32] | None:
        """Draw this step's factors of drop path for the encoder's blocks; see :func:`draw_drop_path`."""
        return draw_drop_path(self._config.model.drop_path, self._spec.blocks, images, self._step_numbers())

    def _step_numbers(self) -> list[int]:
        """Return the numbers that seed what this step draws at random."""
        return step_entropy(self._config.run.seed, self._steps, self._rank)

    def _create_optimizer(self) -> Optimizer:
        """Create the optimiser; of L layers, layer i learns at ``layer_decay ** (L - i)`` of the rate (BEiT, MAE).

        Everything outside the encoder is the last layer.
        """
        config = self._config
        prefix = self._encoder_prefix
        layers = {}
        for name, value in self.model.parameters_and_names():
            if value.requires_grad and name.startswith(prefix):
                layers[name] = layer_of(name.removeprefix(prefix), self._spec)
        above = 1 + max(layers.values(), default=0)
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
        return Momentum(trained, scales, decaying)
