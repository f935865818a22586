"""An encoder under a global descriptor on one MindSpore target, trained by ArcFace.

Shapes: B images of H x W pixels, C classes, D features of a descriptor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes
from ehm.backends.mindspore.engine.devices import Target, choose_dtype
from ehm.backends.mindspore.engine.graphs import BatchGraph
from ehm.backends.mindspore.engine.step import Training
from ehm.backends.mindspore.learners.supervised import SupervisedLearner
from ehm.backends.mindspore.models.embedding import Embedding
from ehm.backends.mindspore.models.loading import load_model
from ehm.config import RetrievalConfig
from ehm.errors import BackendError
from ehm.models.shapes import spec_from_json
from ehm.models.weights import Weights

__all__ = ["MindsporeEmbedder"]


class MindsporeEmbedder(SupervisedLearner):
    """Implements :class:`ehm.backends.base.Embedder`, at one size of image."""

    def __init__(
        self,
        config: RetrievalConfig,
        classes: int,
        target: Target,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        _refuse_sizes(config)
        dtype = choose_dtype(config.optim.dtype, target)
        gem = config.pool == "gem"
        pool = "avg" if config.pool == "gem" else config.pool
        seed = config.run.seed
        loaded = load_model(config.model, seed, pool=pool, fc_norm=False, dtype=dtype, weights=weights)
        rng = np.random.default_rng([seed, 1])  # the encoder begins with the numbers of the seed alone
        width = spec_from_json(loaded.architecture).features
        model = Embedding(loaded.model, width, rng, config.dim, classes, config.margin, config.scale, gem)
        super().__init__(config, processes, model, loaded, "encoder.")
        pixels = self._pixels

        def loss(images: Tensor, labels: Tensor, keep: Tensor | None) -> Tensor:
            logits = model.compute_logits(pixels(images), labels, keep)
            return -ops.gather_elements(ops.log_softmax(logits, axis=-1), 1, labels.reshape((-1, 1))).mean()

        measured = self.measured_model

        def describe(images: Tensor) -> Tensor:
            return measured(pixels(images))

        self._describe = BatchGraph(describe)
        self._training = Training(loss, self._create_optimizer(), config.optim, dtype, processes)

    def train_step(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Embedder.train_step`."""
        keep = self._draw_drop_path(len(images))
        targets = labels.astype(np.int32)

        def take_inputs(rows: slice) -> tuple[Any, ...]:
            factors = None if keep is None else Tensor(keep[:, rows])
            return Tensor(images[rows]), Tensor(targets[rows]), factors

        return self._take_step(len(images), take_inputs, lr, weight_decay)

    def compute_descriptors(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Embedder.compute_descriptors`."""
        self.measured_model.set_train(False)
        return self._describe(images)


def _refuse_sizes(config: RetrievalConfig) -> None:
    """Raise BackendError if images shall be described at any other size than ``model.image_size``."""
    remedy = "--device cpu, cuda or npu measures it with torch"
    if config.longest is not None:
        raise BackendError(
            f"longest {config.longest}: the MindSpore backend compiles a graph for every size of image, and so for "
            f"every photograph; leave it out, or {remedy}"
        )
    if config.scales != (1.0,):
        raise BackendError(
            f"scales {list(config.scales)}: the MindSpore backend describes images at one size; leave [1.0], or "
            f"{remedy}"
        )


TASK_LEARNER = MindsporeEmbedder
"""The learner of the task that this file is named after; the backend finds it by that name."""
