"""An encoder with a linear head on one torch device: fine-tuning, and linear probing where ``frozen``.

Shapes: B images of H x W pixels, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ehm.backends.base import ALONE, Processes
from ehm.backends.common import split_batch
from ehm.backends.torch.engine.tensors import Pixels, upload_array
from ehm.backends.torch.learners.supervised import Supervised
from ehm.backends.torch.models.loading import classifier_name, load_model
from ehm.backends.torch.models.vit import layers_of
from ehm.config import FinetuneConfig
from ehm.errors import ConfigError

__all__ = ["TorchClassifier", "probe_head"]


class TorchClassifier(Supervised):
    """Implements :class:`ehm.backends.base.Classifier`. ``model`` is the torch module: a timm model, whole."""

    def __init__(
        self, config: FinetuneConfig, classes: int, device: torch.device, processes: Processes = ALONE
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            loaded = load_model(config.model, classes, config.pool, fc_norm=False if config.frozen else None)
            self._head = probe_head(loaded.model) if config.frozen else None
        if config.run.grad_checkpointing:
            loaded.model.set_grad_checkpointing(True)
        super().__init__(loaded.model, loaded, config, device, processes, self._head)
        self._trained_pixels = Pixels(device, loaded.inputs.mean, loaded.inputs.std)
        self._parts = config.optim.accumulate

    def train_step(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Classifier.train_step`."""
        wanted = upload_array(targets, self._device)
        if self._head is None:
            return self._fine_tune(images, wanted, lr, weight_decay)
        return self._probe(self._head, images, wanted, lr, weight_decay)

    def compute_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Classifier.compute_logits`."""
        self.model.eval()
        with torch.no_grad(), self._training.autocast():
            logits: NDArray[np.float32] = self.model(self._pixels(images)).float().cpu().numpy()
        return logits

    def measure_gradients(self, images: NDArray[np.uint8], targets: NDArray[np.float32]) -> NDArray[np.float64]:
        """See :meth:`ehm.backends.base.Classifier.measure_gradients`."""
        self.model.eval()
        layers = layers_of(self.model)
        head = max(layers.values())
        named = [(name, p) for name, p in self.model.named_parameters() if layers[name] < head and p.requires_grad]
        with _normal_head(self.model):
            loss = soft_cross_entropy(self.model(self._trained_pixels(images)), upload_array(targets, self._device))
            found = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
        parts: list[list[Tensor]] = [[] for _ in range(head)]
        for (name, parameter), gradient in zip(named, found, strict=True):
            parts[layers[name]].append(torch.zeros_like(parameter) if gradient is None else gradient)
        flat = [torch.cat([gradient.flatten() for gradient in part]) for part in parts]
        return np.array([[float(layer.abs().mean()), float(layer.norm())] for layer in flat])

    def _fine_tune(
        self, images: NDArray[np.uint8], targets: Tensor, lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        self.model.train()

        def loss(rows: slice) -> Tensor:
            with self._training.autocast():
                logits = self._training.module(self._pixels(images[rows]))
            return soft_cross_entropy(logits, targets[rows])

        return self._step(len(images), loss, lr, weight_decay)

    def _probe(
        self, head: nn.Module, images: NDArray[np.uint8], targets: Tensor, lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """The encoder runs part by part without gradient; the head's batch norm sees the whole batch at once."""
        self.model.eval()
        head.train()
        with torch.no_grad(), self._training.autocast():
            features = torch.cat([self._features(images[rows]) for rows in split_batch(len(images), self._parts)])

        def loss(rows: slice) -> Tensor:
            return soft_cross_entropy(self._training.module(features.float()), targets)

        return self._step(len(images), loss, lr, weight_decay)

    def _features(self, images: NDArray[np.uint8]) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(self._pixels(images)), pre_logits=True)
        return features


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy against distributions, in float32: (B, C), (B, C) -> scalar mean over B."""
    return -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


@contextmanager
def _normal_head(model: Any) -> Iterator[None]:
    """Give the classifier normal weights (std 0.02, seed 0) and no bias for a while."""
    linear = model.get_submodule(classifier_name(model))
    kept = {name: value.clone() for name, value in linear.state_dict().items()}
    weight = np.random.default_rng(0).normal(0, 0.02, tuple(linear.weight.shape)).astype(np.float32)
    linear.load_state_dict({name: torch.from_numpy(weight) if name == "weight" else kept[name] * 0 for name in kept})
    try:
        yield
    finally:
        linear.load_state_dict(kept)


def probe_head(model: Any) -> nn.Module:
    """Freeze ``model`` and put batch norm without affine before its linear classifier, as MAE's linear probe does."""
    name = classifier_name(model)
    linear = model.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise ConfigError(f"model.init: its classifier {name} is a {type(linear).__name__}, which cannot be probed")
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    model.requires_grad_(False)
    head = nn.Sequential(nn.BatchNorm1d(linear.in_features, affine=False, eps=1e-6), linear.requires_grad_(True))
    model.set_submodule(name, head)
    return head
