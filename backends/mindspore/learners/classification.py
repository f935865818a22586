"""An encoder with a linear head on one MindSpore target: fine-tuning, and linear probing with a ``frozen`` encoder.

Shapes: B images of H x W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes
from ehm.backends.common import is_decayed, split_batch, step_entropy
from ehm.backends.mindspore.engine.devices import Target, choose_dtype
from ehm.backends.mindspore.engine.graphs import BatchGraph, compile_graph
from ehm.backends.mindspore.engine.optim import AdamW, Momentum, Optimizer
from ehm.backends.mindspore.engine.step import Training, draw_drop_path, refuse_tuning, refuse_unknown
from ehm.backends.mindspore.engine.tensors import Pixels, load_arrays, to_arrays
from ehm.backends.mindspore.learners.supervised import UNDECAYED
from ehm.backends.mindspore.models.blocks import Block
from ehm.backends.mindspore.models.loading import load_model
from ehm.backends.mindspore.models.tuning import freeze_blocks, layer_of
from ehm.backends.resumable import ResumableLearner
from ehm.config import FinetuneConfig
from ehm.config.inputs import differing_inputs
from ehm.errors import BackendError
from ehm.models.shapes import spec_from_json
from ehm.models.weights import Weights

__all__ = ["MindsporeClassifier"]


class MindsporeClassifier(ResumableLearner):
    """Implements :class:`ehm.backends.base.Classifier`. Raises BackendError for settings that this backend lacks."""

    _to_arrays = staticmethod(to_arrays)
    _load_arrays = staticmethod(load_arrays)

    def __init__(
        self,
        config: FinetuneConfig,
        classes: int,
        target: Target,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        refuse_unknown(config, processes)
        refuse_tuning(config)
        if config.loss == "binary_cross_entropy":
            raise BackendError(
                "loss binary_cross_entropy: several labels an image are not in MindSpore; --device cpu, cuda or npu "
                "learns them with torch"
            )
        self._config = config
        self._rank = processes.rank
        dtype = choose_dtype(config.optim.dtype, target)
        fc_norm = False if config.frozen else None
        channels = config.data.wanted_channels
        loaded = load_model(
            config.model, config.run.seed, classes, config.pool, fc_norm, dtype, config.frozen, weights, channels
        )
        model = loaded.model
        self.model = model
        self._spec = spec_from_json(loaded.architecture)
        self.image_size = loaded.image_size
        self.architecture: Mapping[str, Any] = loaded.architecture
        self.notes = loaded.notes + freeze_blocks(model, self._spec, config.model.freeze)
        self.inputs = config.data.input_spec(loaded.inputs)
        if self.notes:
            self.notes += differing_inputs(self.inputs, loaded.inputs)
        if config.run.grad_checkpointing:
            for _, cell in model.cells_and_names():
                if isinstance(cell, Block):
                    cell.recompute()
        pixels = Pixels(self.inputs.mean, self.inputs.std, self.inputs.pixels.white)

        def loss(images: Tensor, targets: Tensor, keep: Tensor | None) -> Tensor:
            return soft_cross_entropy(model(pixels(images), keep), targets)

        def probe_loss(features: Tensor, targets: Tensor) -> Tensor:
            return soft_cross_entropy(model.head(features), targets)

        def features(images: Tensor) -> Tensor:
            return model.pool_images(pixels(images))

        def logits(images: Tensor) -> Tensor:
            return model(pixels(images)).astype(ms.float32)

        self._features = compile_graph(features)
        self._logits = BatchGraph(logits)
        optimizer = self._create_optimizer()
        if config.frozen:
            # one part, because the head's batch norm has to see the whole batch at once
            self._training = Training(probe_loss, optimizer, config.optim, dtype, processes, parts=1)
        else:
            self._training = Training(loss, optimizer, config.optim, dtype, processes)

    def train_step(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Classifier.train_step`."""
        if self._config.frozen:
            take_inputs = self._prepare_probe(images, targets)
        else:
            take_inputs = self._prepare_fine_tuning(images, targets)
        metrics = self._training.step(len(images), take_inputs, lr, weight_decay)
        self._steps += 1
        return metrics

    def compute_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Classifier.compute_logits`."""
        # nothing else of the network differs between training and evaluation
        self.model.head.set_train(False)
        return self._logits(images)

    def measure_gradients(self, images: NDArray[np.uint8], targets: NDArray[np.float32]) -> NDArray[np.float64]:
        """Raise BackendError: this backend has none."""
        raise BackendError("gradients are not in MindSpore; --device cpu, cuda or npu computes them with torch")

    def _prepare_fine_tuning(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32]
    ) -> Callable[[slice], tuple[Any, ...]]:
        """Return a function that gives the loss's inputs for a slice of the batch."""
        numbers = step_entropy(self._config.run.seed, self._steps, self._rank)
        keep = draw_drop_path(self._config.model.drop_path, self._spec.blocks, len(images), numbers)

        def take_inputs(rows: slice) -> tuple[Any, ...]:
            factors = None if keep is None else Tensor(keep[:, rows])
            return Tensor(images[rows]), Tensor(targets[rows]), factors

        return take_inputs

    def _prepare_probe(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32]
    ) -> Callable[[slice], tuple[Any, ...]]:
        """Run the encoder part by part without gradient; return a function that gives the inputs of the head."""
        parts = []
        for rows in split_batch(len(images), self._config.optim.accumulate):
            parts.append(self._features(Tensor(images[rows])).astype(ms.float32))
        self.model.head.set_train()
        features = ops.cat(parts)
        return lambda rows: (features, Tensor(targets))

    def _create_optimizer(self) -> Optimizer:
        """Create the optimiser; layer i of L learns at ``layer_decay ** (L - i)`` of the rate (BEiT, MAE)."""
        config = self._config
        last = self._spec.blocks + 1
        trained = {}
        scales = []
        decaying = []
        for name, value in self.model.parameters_and_names():
            if value.requires_grad and (not config.frozen or name.startswith("head.")):
                trained[name] = value
                scales.append(config.layer_decay ** (last - layer_of(name, self._spec)))
                decaying.append(is_decayed(name, value.ndim, UNDECAYED))
        if config.optimizer == "adamw":
            return AdamW(trained, scales, decaying, config.optim.betas)
        return Momentum(trained, scales, decaying, trust=0.001 if config.optimizer == "lars" else None)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean cross entropy against distributions, in float32: (B, C), (B, C) -> scalar."""
    return -(targets * ops.log_softmax(logits.astype(ms.float32), axis=-1)).sum(axis=-1).mean()


TASK_LEARNER = MindsporeClassifier
"""The learner of the task that this file is named after; the backend finds it by that name."""
