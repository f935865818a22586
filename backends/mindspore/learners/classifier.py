"""An encoder with a linear head on one MindSpore target: fine-tuning, and linear probing where ``frozen``.

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
from ehm.backends.mindspore.engine.optim import AdamW, Momentum, Optimizer
from ehm.backends.mindspore.engine.step import Training, draw_drop_path, refuse_unknown
from ehm.backends.mindspore.engine.tensors import Pixels, load_arrays, to_arrays
from ehm.backends.mindspore.models.loading import load_model
from ehm.backends.mindspore.models.vit import layer_of
from ehm.backends.resumable import ResumableLearner
from ehm.config import FinetuneConfig
from ehm.config.inputs import differing_inputs
from ehm.errors import BackendError
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
        refuse_unknown(config.run, processes)
        self._config = config
        self._rank = processes.rank
        dtype = choose_dtype(config.optim.dtype, target)
        fc_norm = False if config.frozen else None
        loaded = load_model(config.model, config.run.seed, classes, config.pool, fc_norm, dtype, config.frozen, weights)
        self.model = model = loaded.model
        self._depth = len(model.blocks)
        self.image_size = loaded.image_size
        self.architecture: Mapping[str, Any] = loaded.architecture
        self.notes = loaded.notes
        self.inputs = config.data.input_spec(loaded.inputs)
        if self.notes:
            self.notes += differing_inputs(self.inputs, loaded.inputs)
        if config.run.grad_checkpointing:
            for block in model.blocks:
                block.recompute()
        pixels = Pixels(self.inputs.mean, self.inputs.std)

        def loss(images: Tensor, targets: Tensor, keep: Tensor | None) -> Tensor:
            return soft_cross_entropy(model(pixels(images), keep), targets)

        def probe_loss(features: Tensor, targets: Tensor) -> Tensor:
            return soft_cross_entropy(model.head(features), targets)

        def features(images: Tensor) -> Tensor:
            return model.compute_features(pixels(images))

        def logits(images: Tensor) -> Tensor:
            return model(pixels(images)).astype(ms.float32)

        self._features, self._logits = ms.jit(features), ms.jit(logits)
        optimizer = self._optimizer()
        if config.frozen:  # the head's batch norm sees the whole batch at once
            self._training = Training(probe_loss, optimizer, config.optim, dtype, processes, parts=1)
        else:
            self._training = Training(loss, optimizer, config.optim, dtype, processes)

    def train_step(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Classifier.train_step`."""
        inputs = self._probe_inputs(images, targets) if self._config.frozen else self._inputs(images, targets)
        metrics = self._training.step(len(images), inputs, lr, weight_decay)
        self._steps += 1
        return metrics

    def compute_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Classifier.compute_logits`."""
        self.model.head.set_train(False)
        logits: NDArray[np.float32] = self._logits(Tensor(images)).asnumpy()
        return logits

    def measure_gradients(self, images: NDArray[np.uint8], targets: NDArray[np.float32]) -> NDArray[np.float64]:
        """There are none: raises BackendError."""
        raise BackendError("gradients are not in MindSpore; --device cpu, cuda or npu computes them with torch")

    def _inputs(self, images: NDArray[np.uint8], targets: NDArray[np.float32]) -> Callable[[slice], tuple[Any, ...]]:
        numbers = step_entropy(self._config.run.seed, self._steps, self._rank)
        keep = draw_drop_path(self._config.model.drop_path, self._depth, len(images), numbers)
        return lambda rows: (
            Tensor(images[rows]),
            Tensor(targets[rows]),
            None if keep is None else Tensor(keep[:, rows]),
        )

    def _probe_inputs(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32]
    ) -> Callable[[slice], tuple[Any, ...]]:
        """The encoder runs part by part without gradient."""
        parts = [
            self._features(Tensor(images[rows])) for rows in split_batch(len(images), self._config.optim.accumulate)
        ]
        self.model.head.set_train()
        features = ops.cat([part.astype(ms.float32) for part in parts])
        return lambda rows: (features, Tensor(targets))

    def _optimizer(self) -> Optimizer:
        """Layer i of L learns at ``layer_decay ** (L - i)`` of the rate (BEiT, and MAE's ``lr_decay.py``)."""
        config, last = self._config, self._depth + 1
        own = {name: value for name, value in self.model.parameters_and_names() if value.requires_grad}
        if config.frozen:
            own = {name: value for name, value in own.items() if name.startswith("head.")}
        scales = [config.layer_decay ** (last - layer_of(name, self._depth)) for name in own]
        decaying = [is_decayed(name, value.ndim, ("cls_token", "pos_embed")) for name, value in own.items()]
        if config.optimizer == "adamw":
            return AdamW(own, scales, decaying, config.optim.betas)
        return Momentum(own, scales, decaying, trust=0.001 if config.optimizer == "lars" else None)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy against distributions, in float32: (B, C), (B, C) -> scalar mean over B."""
    return -(targets * ops.log_softmax(logits.astype(ms.float32), axis=-1)).sum(axis=-1).mean()
