"""An encoder with a linear head on one torch device: fine-tuning, and linear probing with a ``frozen`` encoder.

Shapes: B images of H x W pixels, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ehm.backends.base import ALONE, Processes
from ehm.backends.common import draw_normal_head, split_batch
from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.tensors import Pixels
from ehm.backends.torch.engine.transfers import upload_array
from ehm.backends.torch.learners.supervised import SupervisedLearner
from ehm.backends.torch.models.loading import find_classifier_name, load_model
from ehm.backends.torch.models.vit import find_layers
from ehm.config import FinetuneConfig
from ehm.errors import ConfigError
from ehm.models.weights import Weights

__all__ = ["TorchClassifier", "add_probe_head"]

Compare = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of logits (B, C) against targets (B, C)."""


class TorchClassifier(SupervisedLearner):
    """Implements :class:`ehm.backends.base.Classifier`. ``model`` is the torch module: a timm model, whole."""

    def __init__(
        self,
        config: FinetuneConfig,
        classes: int,
        device: torch.device,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        with seed_weights(config.run.seed):
            fc_norm = False if config.frozen else None  # a probe keeps the encoder's own norm
            loaded = load_model(
                config.model, classes, config.pool, fc_norm, weights, channels=config.data.wanted_channels
            )
            self._head: nn.Module | None = None
            if config.frozen:
                self._head = add_probe_head(loaded.model)
        if config.run.grad_checkpointing:
            loaded.model.set_grad_checkpointing(True)
        super().__init__(loaded.model, loaded, config, device, processes, self._head)
        # gradients are compared between encoders, on the pixels that each was trained on
        self._trained_pixels = Pixels(device, loaded.inputs.mean, loaded.inputs.std, loaded.inputs.pixels.white)
        self._parts = config.optim.accumulate
        self._is_binary = config.loss == "binary_cross_entropy"

    def train_step(
        self,
        images: NDArray[np.uint8],
        targets: NDArray[np.float32],
        lr: float,
        weight_decay: float,
        positive_weights: NDArray[np.float32] | None = None,
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Classifier.train_step`."""
        targets_on_device = upload_array(targets, self._device)
        compare = soft_cross_entropy
        if self._is_binary:
            weights = None if positive_weights is None else upload_array(positive_weights, self._device)
            compare = partial(binary_cross_entropy, positive_weights=weights)
        if self._head is None:
            return self._fine_tune(images, targets_on_device, compare, lr, weight_decay)
        return self._train_probe(self._head, images, targets_on_device, compare, lr, weight_decay)

    def compute_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Classifier.compute_logits`."""
        model = self.measured_model.eval()
        with torch.no_grad(), self._training.autocast():
            logits: NDArray[np.float32] = model(self._pixels(images)).float().cpu().numpy()
        return logits

    def measure_gradients(self, images: NDArray[np.uint8], targets: NDArray[np.float32]) -> NDArray[np.float64]:
        """See :meth:`ehm.backends.base.Classifier.measure_gradients`."""
        self.model.eval()
        layers = find_layers(self.model)
        head = max(layers.values())
        below_head: dict[str, nn.Parameter] = {}
        for name, parameter in self.model.named_parameters():
            if layers[name] < head and parameter.requires_grad:
                below_head[name] = parameter
        with _normal_head(self.model):
            loss = soft_cross_entropy(self.model(self._trained_pixels(images)), upload_array(targets, self._device))
            gradients = torch.autograd.grad(loss, list(below_head.values()), allow_unused=True)
        by_layer: list[list[Tensor]] = [[] for _ in range(head)]
        for (name, parameter), gradient in zip(below_head.items(), gradients, strict=True):
            # a parameter that the loss does not depend on counts as one with gradient 0
            values = torch.zeros_like(parameter) if gradient is None else gradient
            by_layer[layers[name]].append(values.flatten())
        rows = []
        for values_of_layer in by_layer:
            layer = torch.cat(values_of_layer)
            rows.append([float(layer.abs().mean()), float(layer.norm())])
        return np.array(rows)

    def _fine_tune(
        self, images: NDArray[np.uint8], targets: Tensor, compare: Compare, lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        self.model.train()

        def compute_loss(rows: slice) -> Tensor:
            with self._training.autocast():
                logits = self._training.module(self._pixels(images[rows]))
            return compare(logits, targets[rows])

        return self._take_step(len(images), compute_loss, lr, weight_decay)

    def _train_probe(
        self,
        head: nn.Module,
        images: NDArray[np.uint8],
        targets: Tensor,
        compare: Compare,
        lr: float,
        weight_decay: float,
    ) -> Mapping[str, SupportsFloat]:
        """Take a step of the head; the encoder runs part by part without gradient."""
        self.model.eval()
        head.train()
        with torch.no_grad(), self._training.autocast():
            # joined, because the head's batch norm has to see the whole batch at once
            parts = [self._pool_features(images[rows]) for rows in split_batch(len(images), self._parts)]
            features = torch.cat(parts)

        def compute_loss(rows: slice) -> Tensor:
            return compare(self._training.module(features.float()), targets)

        return self._take_step(len(images), compute_loss, lr, weight_decay)

    def _pool_features(self, images: NDArray[np.uint8]) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(self._pixels(images)), pre_logits=True)
        return features


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean cross entropy against distributions, in float32: (B, C), (B, C) -> scalar."""
    return -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor, positive_weights: Tensor | None = None) -> Tensor:
    """Compute the mean binary cross entropy over images and labels, in float32: (B, C), (B, C) -> scalar.

    ``positive_weights`` (C,) are factors of the part of the loss that present labels have.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=positive_weights)


@contextmanager
def _normal_head(model: Any) -> Iterator[None]:
    """Give the classifier normal weights (std 0.02, seed 0) and no bias for a while."""
    linear = model.get_submodule(find_classifier_name(model))
    own = {name: value.clone() for name, value in linear.state_dict().items()}
    normal = {name: torch.zeros_like(value) for name, value in own.items()}
    normal["weight"] = torch.from_numpy(draw_normal_head(tuple(linear.weight.shape)))
    linear.load_state_dict(normal)
    try:
        yield
    finally:
        linear.load_state_dict(own)


def add_probe_head(model: Any) -> nn.Module:
    """Freeze ``model``, put a batch norm before its classifier as MAE's linear probe does, and return both."""
    name = find_classifier_name(model)
    linear = model.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise ConfigError(f"model.init: its classifier {name} is a {type(linear).__name__}, which cannot be probed")
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    model.requires_grad_(False)
    head = nn.Sequential(nn.BatchNorm1d(linear.in_features, affine=False, eps=1e-6), linear.requires_grad_(True))
    model.set_submodule(name, head)
    return head


TASK_LEARNER = TorchClassifier
"""The learner of the task that this file is named after; the backend finds it by that name."""
