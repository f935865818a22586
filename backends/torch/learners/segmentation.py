"""UperNet on one torch device: training, and inference on whole images or on windows of them.

Shapes: B images or windows of H x W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ehm.backends.base import ALONE, Processes
from ehm.backends.common import split_batch
from ehm.backends.refusals import refuse_single_images, refuse_whole_images
from ehm.backends.torch.engine.distributed import average_norms, synchronise_norms
from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.step import recompute_activations
from ehm.backends.torch.engine.transfers import upload_array
from ehm.backends.torch.learners.supervised import SupervisedLearner
from ehm.backends.torch.models.pyramid import load_pyramid
from ehm.backends.torch.models.upernet import UperNet, upsample
from ehm.config import SegmentationConfig
from ehm.data.bilinear import enlarge_argmax
from ehm.data.segmentation import place_windows
from ehm.models.pyramid import STRIDES, list_ends_of_thirds
from ehm.models.weights import Weights

__all__ = ["IGNORED", "TorchSegmenter", "pixel_loss"]

IGNORED = 255
"""The label of pixels that do not count."""
_MAX_SCORES = 1 << 28
"""Number of scores of an image in its own size that the device holds at once, 1 GiB."""


class TorchSegmenter(SupervisedLearner):
    """Implements :class:`ehm.backends.base.Segmenter`. ``model`` is the torch module."""

    def __init__(
        self,
        config: SegmentationConfig,
        classes: int,
        device: torch.device,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        with seed_weights(config.run.seed):
            pyramid, loaded = load_pyramid(
                config.model, config.crop_size, config.head.taps or list_ends_of_thirds, weights
            )
            model = synchronise_norms(UperNet(pyramid, classes, config.head), processes, device)
        if config.inference.mode == "whole" and not pyramid.any_size:
            refuse_whole_images(config)
        if config.run.grad_checkpointing:
            recompute_activations(model, random=True)
        super().__init__(model, loaded, config, device, processes, convolves=True)
        self.image_size = config.crop_size
        self._config = config

    def train_step(
        self, images: NDArray[np.uint8], labels: NDArray[np.uint8], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Segmenter.train_step`; ConfigError if a part of the batch is one image."""
        self._refuse_single(len(images))
        self.model.train()
        targets = upload_array(labels, self._device).long()
        auxiliary_weight = self._config.head.auxiliary_weight

        def compute_loss(rows: slice) -> Tensor:
            with self._training.autocast():
                scores, auxiliary = self._training.module(self._pixels(images[rows]))
            loss = pixel_loss(scores, targets[rows])
            if auxiliary is not None:
                loss = loss + auxiliary_weight * pixel_loss(auxiliary, targets[rows])
            return loss

        metrics = self._take_step(len(images), compute_loss, lr, weight_decay)
        # needed if the device cannot take moments over all processes
        average_norms(self.model, self._processes)
        return metrics

    def segment_image(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        """See :meth:`ehm.backends.base.Segmenter.segment_image`."""
        self.measured_model.eval()
        with torch.no_grad():
            pixels = self._pixels(image[None])
            if self._config.inference.mode == "whole":
                scores = self._score_whole(pixels)
            else:
                scores = self._score_windows(pixels)
            if scores.shape[1] * size[0] * size[1] > _MAX_SCORES:
                # on the host, a part at a time
                return enlarge_argmax(scores[0].float().cpu().numpy(), size)
            labels: NDArray[np.uint8] = upsample(scores, size).argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
        return labels

    def _refuse_single(self, rows: int) -> None:
        """Raise ConfigError if a part of a batch is one image: batch norm of the map's mean needs two values."""
        parts = [part.stop - part.start for part in split_batch(rows, self._config.optim.accumulate)]
        synchronised = any(isinstance(module, nn.SyncBatchNorm) for module in self.model.modules())
        if min(parts) < 2 and not synchronised:
            refuse_single_images(self._config.optim, parts)

    def _score_whole(self, pixels: Tensor) -> Tensor:
        """Score a whole image: (1, 3, H, W) -> (1, C, H, W)."""
        height, width = pixels.shape[2:]
        # padded with the mean colour to a multiple of the widest stride
        padded = F.pad(pixels, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        return self._compute_scores(padded)[:, :, :height, :width]

    def _score_windows(self, pixels: Tensor) -> Tensor:
        """Average the scores of all windows of an image: (1, 3, H, W) -> (1, C, H, W)."""
        height, width = pixels.shape[2:]
        h, w = self.image_size
        optim = self._config.optim
        corners = place_windows((max(height, h), max(width, w)), (h, w), self._config.stride)
        total: Tensor | None = None
        counts = torch.zeros((1, 1, height, width), device=self._device)
        # as many windows at once as a part of a training batch has images
        group = max(1, optim.batch_size // optim.accumulate // self._processes.size)
        for start in range(0, len(corners), group):
            chosen = corners[start : start + group]
            chosen_windows = [self._cut_window(pixels, corner) for corner in chosen]
            scores = self._compute_scores(torch.cat(chosen_windows))
            if total is None:
                total = scores.new_zeros((1, scores.shape[1], height, width))
            for (y, x), window in zip(chosen, scores, strict=True):
                inside = total[0, :, y : y + h, x : x + w]
                inside += window[:, : inside.shape[1], : inside.shape[2]]
                counts[:, :, y : y + h, x : x + w] += 1
        assert total is not None
        return total / counts

    def _cut_window(self, pixels: Tensor, corner: tuple[int, int]) -> Tensor:
        """Return the window (1, 3, h, w) at ``corner`` (y, x), with the mean colour beyond the image."""
        y, x = corner
        height, width = self.image_size
        inside = pixels[:, :, y : y + height, x : x + width]
        # one by one: a line of pixels, padded as a whole, would grow to a window's height
        return F.pad(inside, (0, width - inside.shape[3], 0, height - inside.shape[2]))

    def _compute_scores(self, pixels: Tensor) -> Tensor:
        """Score images or windows: (B, 3, H, W) -> (B, C, H, W) in float32."""
        with self._training.autocast():
            # forward itself, because torch.compile compiled a call for one size
            scores, _ = self.measured_model.forward(pixels)
        return upsample(scores.float(), pixels.shape[2:])


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross entropy of scores (B, C, h, w), enlarged to (B, H, W) labels, in float32.

    It is the sum over pixels that count, divided by the number of all, as mmsegmentation does by default: the loss of a
    batch is the mean of its parts' losses then, whatever lies in them.
    """
    # flat, because the kernel for maps sums in another order every time on CUDA
    logits = upsample(scores.float(), labels.shape[1:]).permute(0, 2, 3, 1).flatten(0, 2)
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum") / labels.numel()


TASK_LEARNER = TorchSegmenter
"""The learner of the task that this file is named after; the backend finds it by that name."""
