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

from ehm.backends.base import LearnerState
from ehm.backends.torch.devices import FACTS, arithmetic, autocast
from ehm.backends.torch.models.vit import layers_of
from ehm.backends.torch.optim import LARS, load_optimizer_arrays, optimizer_arrays, param_groups, set_rates
from ehm.backends.torch.tensors import chunks, load_arrays, to_arrays, to_pixels
from ehm.backends.torch.weights import classifier_name, load_model
from ehm.config import FinetuneConfig
from ehm.errors import ConfigError

__all__ = ["TorchClassifier", "probe_head"]

_STEP = "step"


class TorchClassifier:
    """Implements :class:`ehm.backends.base.Classifier`. ``model`` is the torch module: a timm model, whole."""

    def __init__(self, config: FinetuneConfig, classes: int, device: torch.device) -> None:
        self._config, self._device = config, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            loaded = load_model(config.model, classes, config.pool, fc_norm=False if config.frozen else None)
            self.model: Any = loaded.model
            self._head = probe_head(self.model) if config.frozen else None
        self.model.to(device)
        self.image_size = loaded.image_size
        self.architecture: Mapping[str, Any] = loaded.architecture
        self.notes = loaded.notes
        if self.notes and (loaded.mean, loaded.std) != (config.data.mean, config.data.std):
            self.notes += (f"these weights were trained with data.mean {loaded.mean} and data.std {loaded.std}",)
        self._dtype = arithmetic(config.optim.dtype, device)
        self._optimizer = _optimizer(self.model, config, device)
        self._steps = 0

    def train_step(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Classifier.train_step`."""
        set_rates(self._optimizer, lr, weight_decay)
        self._optimizer.zero_grad(set_to_none=True)
        wanted = torch.from_numpy(targets).to(self._device)
        with self._random():
            loss = self._fine_tune(images, wanted) if self._head is None else self._probe(self._head, images, wanted)
        metrics: dict[str, SupportsFloat] = {"loss": loss}
        if self._config.optim.clip_grad is not None:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            metrics["grad_norm"] = nn.utils.clip_grad_norm_(trained, self._config.optim.clip_grad).detach()
        self._optimizer.step()
        self._steps += 1
        return metrics

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Classifier.logits`."""
        self.model.eval()
        with torch.inference_mode(), autocast(self._device, self._dtype):
            logits: NDArray[np.float32] = self.model(self._pixels(images)).float().cpu().numpy()
        return logits

    def state(self) -> LearnerState:
        """See :meth:`ehm.backends.base.Classifier.state`."""
        optimizer = optimizer_arrays(self._optimizer, self.model.named_parameters())
        return LearnerState(to_arrays(self.model), {**optimizer, _STEP: np.array(self._steps, np.int64)})

    def load(self, state: LearnerState) -> None:
        """See :meth:`ehm.backends.base.Classifier.load`."""
        load_arrays(self.model, state.model)
        moments = dict(state.optimizer)
        self._steps = int(moments.pop(_STEP, np.array(0)))
        load_optimizer_arrays(self._optimizer, self.model.named_parameters(), moments)

    def _fine_tune(self, images: NDArray[np.uint8], targets: Tensor) -> Tensor:
        self.model.train()
        total = torch.zeros((), device=self._device)
        for rows in chunks(len(images), self._config.optim.accumulate):
            with autocast(self._device, self._dtype):
                logits = self.model(self._pixels(images[rows]))
            loss = soft_cross_entropy(logits, targets[rows]) * (logits.shape[0] / len(images))
            loss.backward()
            total += loss.detach()
        return total

    def _probe(self, head: nn.Module, images: NDArray[np.uint8], targets: Tensor) -> Tensor:
        """The encoder runs chunk by chunk without gradient; the head's batch norm sees the whole batch at once."""
        self.model.eval()
        head.train()
        with torch.no_grad(), autocast(self._device, self._dtype):
            features = torch.cat(
                [self._features(images[rows]) for rows in chunks(len(images), self._config.optim.accumulate)]
            )
        loss: Any = soft_cross_entropy(head(features.float()), targets)
        loss.backward()
        return loss.detach()

    def _features(self, images: NDArray[np.uint8]) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(self._pixels(images)), pre_logits=True)
        return features

    def _pixels(self, images: NDArray[np.uint8]) -> Tensor:
        return to_pixels(images, self._device, self._config.data.mean, self._config.data.std)

    @contextmanager
    def _random(self) -> Iterator[None]:
        """Random numbers that depend on the seed and the step alone: drop path is the same in a resumed run."""
        on_device = [] if self._device.type == "cpu" else [self._device]
        with torch.random.fork_rng(on_device, device_type=self._device.type):
            torch.manual_seed(int(np.random.SeedSequence([self._config.run.seed, self._steps]).generate_state(1)[0]))
            yield


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy against distributions, in float32: (B, C), (B, C) -> scalar mean over B."""
    return -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


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


def _optimizer(model: Any, config: FinetuneConfig, device: torch.device) -> torch.optim.Optimizer:
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    layers = layers_of(model) if config.layer_decay < 1 else None
    groups = param_groups(model.named_parameters(), skip, config.layer_decay, layers)
    if config.optimizer == "lars":
        return LARS(groups, lr=config.optim.lr)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.optim.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas, fused=FACTS[device.type].fused_adamw)
