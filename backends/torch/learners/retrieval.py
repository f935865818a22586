"""An encoder under a global descriptor on one torch device, trained by ArcFace.

Shapes: B images of H x W pixels, C classes, D features of a descriptor.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ehm.backends.base import ALONE, Processes
from ehm.backends.refusals import refuse_other_sizes
from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.step import recompute_activations
from ehm.backends.torch.engine.transfers import upload_array
from ehm.backends.torch.learners.supervised import SupervisedLearner
from ehm.backends.torch.models.embedding import Embedding, load_encoder
from ehm.backends.torch.models.pyramid import can_take_any_size, take_any_size
from ehm.config import RetrievalConfig
from ehm.models.weights import Weights

__all__ = ["TorchEmbedder"]


class TorchEmbedder(SupervisedLearner):
    """Implements :class:`ehm.backends.base.Embedder`. ``model`` is the torch module, an :class:`Embedding`."""

    def __init__(
        self,
        config: RetrievalConfig,
        classes: int,
        device: torch.device,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        with seed_weights(config.run.seed):
            loaded = load_encoder(config.model, config.pool, weights)
            gem = config.pool == "gem"
            model = Embedding(loaded.model, config.dim, classes, config.margin, config.scale, gem)
        one_size = config.longest is None and config.scales == (1.0,)
        self._stride = None if one_size else _make_resizable(loaded.model, loaded.image_size, config)
        if config.run.grad_checkpointing:
            recompute_activations(model, random=True)
        super().__init__(model, loaded, config, device, processes)
        self._config = config

    def train_step(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Embedder.train_step`."""
        targets = upload_array(labels, self._device)
        self.model.train()

        def compute_loss(rows: slice) -> Tensor:
            with self._training.autocast():
                logits = self._training.module(self._pixels(images[rows]), targets[rows])
            return F.cross_entropy(logits, targets[rows])

        return self._take_step(len(images), compute_loss, lr, weight_decay)

    @torch.no_grad()
    def compute_descriptors(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Embedder.compute_descriptors`: the mean over all scales, brought to length 1."""
        model = self.measured_model.eval()
        pixels = self._pixels(images)
        total = torch.zeros((), device=self._device)
        own_size = self._config.longest is not None
        height, width = self.image_size
        if own_size:
            height, width = images.shape[1:3]
        # torch would compile the network anew for each image's size
        eager = torch.compiler.set_stance("force_eager") if own_size and self._config.run.compile else nullcontext()
        with eager:
            for scale in self._config.scales:
                size = self._fit_side(height * scale), self._fit_side(width * scale)
                resized = pixels
                if size != pixels.shape[2:]:
                    resized = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
                with self._training.autocast():
                    # all scales count alike, because descriptors have length 1
                    total = total + model(resized)
        descriptors: NDArray[np.float32] = F.normalize(total, dim=1).cpu().numpy()
        return descriptors

    def _fit_side(self, side: float) -> int:
        """Return the nearest number of pixels that the encoder takes."""
        if self._stride is None:
            return round(side)
        return max(1, round(side / self._stride)) * self._stride


def _make_resizable(encoder: Any, size: tuple[int, int], config: RetrievalConfig) -> int:
    """Let the encoder take images of any size; return the number that their sides have to be multiples of.

    Raises ConfigError for an encoder that takes images of ``size`` = (H, W) only.
    """
    stride: int = encoder.feature_info[-1]["reduction"]
    if can_take_any_size(encoder):
        take_any_size(encoder)
    elif not _accepts_size(encoder, (size[0] + stride, size[1] + 2 * stride)):
        refuse_other_sizes(config, f"a {type(encoder).__name__}")
    return stride


@torch.no_grad()
def _accepts_size(encoder: Any, size: tuple[int, int]) -> bool:
    try:
        encoder.eval().forward_features(torch.zeros(1, 3, *size))
    except (AssertionError, RuntimeError, ValueError):  # each model of timm's has its own way to say no
        return False
    return True


TASK_LEARNER = TorchEmbedder
"""The learner of the task that this file is named after; the backend finds it by that name."""
