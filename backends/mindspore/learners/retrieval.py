"""An encoder under a global descriptor on one MindSpore target, trained by ArcFace.

Shapes: B images of H x W pixels, C classes, D features of a descriptor.
"""

from __future__ import annotations

import math
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
from ehm.backends.mindspore.models.canvas import can_take_any_size, enlarge_side, lay_out_patches, place_row
from ehm.backends.mindspore.models.embedding import LEAST_LENGTH, Embedding
from ehm.backends.mindspore.models.loading import load_model
from ehm.backends.refusals import refuse_other_sizes
from ehm.config import RetrievalConfig
from ehm.config.encoders import VitSpec
from ehm.models.resample import compute_bilinear_weights
from ehm.models.shapes import spec_from_json
from ehm.models.weights import Weights

__all__ = ["MindsporeEmbedder"]


class MindsporeEmbedder(SupervisedLearner):
    """Implements :class:`ehm.backends.base.Embedder`."""

    def __init__(
        self,
        config: RetrievalConfig,
        classes: int,
        target: Target,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        dtype = choose_dtype(config.optim.dtype, target)
        gem = config.pool == "gem"
        pool = "avg" if config.pool == "gem" else config.pool
        seed = config.run.seed
        loaded = load_model(config.model, seed, pool=pool, fc_norm=False, dtype=dtype, weights=weights)
        rng = np.random.default_rng([seed, 1])  # the encoder begins with the numbers of the seed alone
        width = spec_from_json(loaded.architecture).features
        model = Embedding(loaded.model, width, rng, config.dim, classes, config.margin, config.scale, gem)
        super().__init__(config, processes, model, loaded, "encoder.")
        self._has_one_size = config.longest is None and config.scales == (1.0,)
        if not self._has_one_size and not can_take_any_size(self._spec):
            refuse_other_sizes(config, f"this encoder ({config.model.init})")
        pixels = self._pixels

        def compute_loss(images: Tensor, labels: Tensor, keep: Tensor | None) -> Tensor:
            logits = model.compute_logits(pixels(images), labels, keep)
            return -ops.gather_elements(ops.log_softmax(logits, axis=-1), 1, labels.reshape((-1, 1))).mean()

        measured = self.measured_model

        def describe(images: Tensor) -> Tensor:
            return measured(pixels(images))

        def describe_canvas(patches: Tensor, *others: Tensor | None) -> Tensor:
            return measured.describe_canvas(patches, *others)

        self._describe = BatchGraph(describe)
        self._describe_canvas = BatchGraph(describe_canvas)
        self._training = Training(compute_loss, self._create_optimizer(), config.optim, dtype, processes)

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
        """See :meth:`ehm.backends.base.Embedder.compute_descriptors`: the mean over all scales, brought to length 1."""
        self.measured_model.set_train(False)
        if self._has_one_size:
            return self._describe(images)
        pixels = self._normalise(images)
        height, width = self.image_size if self._config.longest is None else images.shape[1:3]
        total = np.zeros((), np.float32)
        for scale in self._config.scales:
            size = (self._fit_side(height * scale), self._fit_side(width * scale))
            # all scales count alike, because descriptors have length 1
            total = total + self._describe_size(pixels, size)
        lengths = np.linalg.norm(total, axis=1, keepdims=True)
        descriptors: NDArray[np.float32] = total / np.maximum(lengths, LEAST_LENGTH)
        return descriptors

    def _describe_size(self, pixels: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Describe images (B, 3, H, W) at ``size``, of which the graph knows nothing but the patches' number."""
        if size != pixels.shape[2:]:
            down = compute_bilinear_weights(size[0], pixels.shape[2]).astype(np.float32)
            across = compute_bilinear_weights(size[1], pixels.shape[3]).astype(np.float32)
            pixels = (down @ pixels @ across.T).astype(np.float32)
        assert isinstance(self._spec, VitSpec)
        patches = math.prod(size) // self._spec.patch_size**2
        tokens = lay_out_patches(pixels, self._spec, place_row(patches), enlarge_side(patches))
        return self._describe_canvas(*tokens)

    def _fit_side(self, side: float) -> int:
        """Return the nearest number of pixels that the encoder takes."""
        patch_size: int = self._spec.patch_size
        return max(1, round(side / patch_size)) * patch_size


TASK_LEARNER = MindsporeEmbedder
"""The learner of the task that this file is named after; the backend finds it by that name."""
