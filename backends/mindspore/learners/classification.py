"""An encoder with a linear head on one MindSpore target: fine-tuning, and linear probing with a ``frozen`` encoder.

Shapes: B images of H x W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, SupportsFloat

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes
from ehm.backends.common import draw_normal_head, split_batch
from ehm.backends.mindspore.engine.devices import Target, choose_dtype
from ehm.backends.mindspore.engine.graphs import BatchGraph, compile_graph
from ehm.backends.mindspore.engine.step import Training
from ehm.backends.mindspore.engine.tensors import Pixels, set_values
from ehm.backends.mindspore.learners.supervised import SupervisedLearner
from ehm.backends.mindspore.models.loading import load_model
from ehm.backends.mindspore.models.tuning import find_layer
from ehm.config import FinetuneConfig
from ehm.models.weights import Weights

__all__ = ["MindsporeClassifier"]


class MindsporeClassifier(SupervisedLearner):
    """Implements :class:`ehm.backends.base.Classifier`. Raises BackendError for settings that this backend lacks."""

    def __init__(
        self,
        config: FinetuneConfig,
        classes: int,
        target: Target,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        dtype = choose_dtype(config.optim.dtype, target)
        fc_norm = False if config.frozen else None
        channels = config.data.wanted_channels
        loaded = load_model(
            config.model, config.run.seed, classes, config.pool, fc_norm, dtype, config.frozen, weights, channels
        )
        model = loaded.model
        super().__init__(config, processes, model, loaded)
        self._classes = classes
        self._trained_pixels = Pixels(loaded.inputs.mean, loaded.inputs.std, loaded.inputs.pixels.white)
        is_binary = config.loss == "binary_cross_entropy"
        pixels = self._pixels
        measured = self.measured_model

        def compare(logits: Tensor, targets: Tensor, positive_weights: Tensor | None) -> Tensor:
            if is_binary:
                return binary_cross_entropy(logits, targets, positive_weights)
            return soft_cross_entropy(logits, targets)

        def compute_loss(
            images: Tensor, targets: Tensor, positive_weights: Tensor | None, keep: Tensor | None
        ) -> Tensor:
            return compare(model(pixels(images), keep), targets, positive_weights)

        def compute_probe_loss(features: Tensor, targets: Tensor, positive_weights: Tensor | None) -> Tensor:
            return compare(model.head(features), targets, positive_weights)

        def pool_images(images: Tensor) -> Tensor:
            return model.pool_images(pixels(images))

        def compute_logits(images: Tensor) -> Tensor:
            return measured(pixels(images)).astype(ms.float32)

        self._features = compile_graph(pool_images)
        self._logits = BatchGraph(compute_logits)
        if config.frozen:
            for name, parameter in model.parameters_and_names():
                if not name.startswith("head."):
                    parameter.requires_grad = False
        optimizer = self._create_optimizer()
        if config.frozen:
            # one part, because the head's batch norm has to see the whole batch at once
            self._training = Training(compute_probe_loss, optimizer, config.optim, dtype, processes, parts=1)
        else:
            self._training = Training(compute_loss, optimizer, config.optim, dtype, processes)

    def train_step(
        self,
        images: NDArray[np.uint8],
        targets: NDArray[np.float32],
        lr: float,
        weight_decay: float,
        positive_weights: NDArray[np.float32] | None = None,
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Classifier.train_step`."""
        weights = None
        if self._config.loss == "binary_cross_entropy":
            if positive_weights is None:
                positive_weights = np.ones(self._classes, np.float32)
            weights = Tensor(positive_weights)
        if self._config.frozen:
            take_inputs = self._prepare_probe(images, targets, weights)
        else:
            take_inputs = self._prepare_fine_tuning(images, targets, weights)
        return self._take_step(len(images), take_inputs, lr, weight_decay)

    def compute_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Classifier.compute_logits`."""
        self.measured_model.set_train(False)
        return self._logits(images)

    def measure_gradients(self, images: NDArray[np.uint8], targets: NDArray[np.float32]) -> NDArray[np.float64]:
        """See :meth:`ehm.backends.base.Classifier.measure_gradients`; float32 needs ``optim.dtype`` float32."""
        model = self.model
        pixels = self._trained_pixels
        layers: list[int] = []
        parameters: list[Parameter] = []
        for name, parameter in model.parameters_and_names():
            layer = find_layer(name, self._spec)
            if layer <= self._spec.blocks and parameter.requires_grad:
                layers.append(layer)
                parameters.append(parameter)

        def compute_loss(images: Tensor, targets: Tensor) -> Tensor:
            return soft_cross_entropy(model(pixels(images)), targets)

        model.set_train(False)
        # operator by operator: to compile a graph for a few batches would take longer
        with _normal_head(model):
            measure = ms.value_and_grad(compute_loss, None, ms.ParameterTuple(parameters))
            _, gradients = measure(Tensor(images), Tensor(targets))
        by_layer: list[list[NDArray[np.float32]]] = [[] for _ in range(self._spec.blocks + 1)]
        for layer, gradient in zip(layers, gradients, strict=True):
            by_layer[layer].append(gradient.astype(ms.float32).asnumpy().ravel())
        rows = []
        for values in by_layer:
            entries = np.concatenate(values).astype(np.float64)
            rows.append([np.abs(entries).mean(), np.linalg.norm(entries)])
        return np.array(rows)

    def _prepare_fine_tuning(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32], positive_weights: Tensor | None
    ) -> Callable[[slice], tuple[Any, ...]]:
        """Return a function that gives the loss's inputs for a slice of the batch."""
        keep = self._draw_drop_path(len(images))

        def take_inputs(rows: slice) -> tuple[Any, ...]:
            factors = None if keep is None else Tensor(keep[:, rows])
            return Tensor(images[rows]), Tensor(targets[rows]), positive_weights, factors

        return take_inputs

    def _prepare_probe(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32], positive_weights: Tensor | None
    ) -> Callable[[slice], tuple[Any, ...]]:
        """Run the encoder part by part without gradient; return a function that gives the inputs of the head."""
        parts = []
        for rows in split_batch(len(images), self._config.optim.accumulate):
            parts.append(self._features(Tensor(images[rows])).astype(ms.float32))
        features = ops.cat(parts)
        return lambda rows: (features, Tensor(targets), positive_weights)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean cross entropy against distributions, in float32: (B, C), (B, C) -> scalar."""
    return -(targets * ops.log_softmax(logits.astype(ms.float32), axis=-1)).sum(axis=-1).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor, positive_weights: Tensor) -> Tensor:
    """Compute the mean binary cross entropy over images and labels, in float32: (B, C), (B, C) -> scalar.

    ``positive_weights`` (C,) are factors of the part of the loss that present labels have.
    """
    ones = ops.ones_like(targets)
    return ops.BCEWithLogitsLoss("mean")(logits.astype(ms.float32), targets, ones, positive_weights)


@contextmanager
def _normal_head(model: nn.Cell) -> Iterator[None]:
    """Give the classifier normal weights (standard deviation 0.02, seed 0) and no bias for a while."""
    own: list[tuple[Parameter, NDArray[Any]]] = []
    for name, parameter in model.parameters_and_names():
        if name.startswith("head."):
            own.append((parameter, parameter.asnumpy().copy()))
    for parameter, value in own:
        normal = np.zeros_like(value)
        if value.ndim == 2:
            normal = draw_normal_head(value.shape)
        set_values(parameter, normal)
    try:
        yield
    finally:
        for parameter, value in own:
            set_values(parameter, value)


TASK_LEARNER = MindsporeClassifier
"""The learner of the task that this file is named after; the backend finds it by that name."""
