"""UperNet on one MindSpore target: training on crops, and inference on windows of their size or on whole images.

Shapes: B crops or windows of H x W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes
from ehm.backends.common import split_batch
from ehm.backends.mindspore.engine.devices import Target, choose_dtype
from ehm.backends.mindspore.engine.graphs import compile_graph
from ehm.backends.mindspore.engine.step import Training
from ehm.backends.mindspore.learners.supervised import SupervisedLearner
from ehm.backends.mindspore.models.canvas import can_take_any_size, enlarge_side
from ehm.backends.mindspore.models.frame import build_frame, group_frame
from ehm.backends.mindspore.models.pyramid import load_pyramid
from ehm.backends.mindspore.models.upernet import UperNet
from ehm.backends.refusals import refuse_single_images, refuse_whole_images
from ehm.config import SegmentationConfig
from ehm.data.bilinear import enlarge_argmax
from ehm.data.segmentation import place_windows
from ehm.models.pyramid import STRIDES, round_stride
from ehm.models.weights import Weights

__all__ = ["MindsporeSegmenter"]

_IGNORED = 255
"""The label of pixels that do not count."""


class MindsporeSegmenter(SupervisedLearner):
    """Implements :class:`ehm.backends.base.Segmenter`."""

    def __init__(
        self,
        config: SegmentationConfig,
        classes: int,
        target: Target,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        dtype = choose_dtype(config.optim.dtype, target)
        seed = config.run.seed
        size = config.crop_size
        head = config.head
        pyramid, loaded = load_pyramid(config.model, seed, size, head.taps, dtype, processes, weights)
        rng = np.random.default_rng([seed, 2])  # the pyramid begins with other numbers of the seed
        model = UperNet(pyramid, classes, head, size, dtype, processes, rng)
        super().__init__(config, processes, model, loaded, "pyramid.encoder.")
        if config.inference.mode == "whole" and not can_take_any_size(self._spec):
            refuse_whole_images(config)
        self.image_size = size
        self._processes = processes
        self._group = max(1, config.optim.batch_size // config.optim.accumulate // processes.size)
        pixels = self._pixels
        stride = round_stride(self._spec.patch_size)
        auxiliary_weight = head.auxiliary_weight

        def compute_loss(
            images: Tensor, labels: Tensor, keep: Tensor | None, kept: Tensor | None, kept_auxiliary: Tensor | None
        ) -> Tensor:
            scores, auxiliary = model(pixels(images), keep, kept, kept_auxiliary)
            value = pixel_loss(scores, labels)
            if auxiliary_weight:
                value = value + auxiliary_weight * pixel_loss(auxiliary, labels)
            return value

        measured = self.measured_model

        def score(windows: Tensor) -> Tensor:
            return measured.score(windows)

        def score_canvas(
            patches: Tensor, resampling: Tensor | None, rotations: Tensor | None, bias: Tensor, *frame: Tensor
        ) -> Tensor:
            parts = group_frame(frame)
            finest = parts[0][0].shape
            grid = (finest[2] * STRIDES[0] // stride, finest[3] * STRIDES[0] // stride)
            levels = measured.pyramid.compute_canvas_levels(patches, resampling, rotations, bias, grid)
            return measured.score_canvas(levels, parts)

        self._score = compile_graph(score)
        self._score_canvas = compile_graph(score_canvas)
        self._training = Training(compute_loss, self._create_optimizer(), config.optim, dtype, processes)

    def train_step(
        self, images: NDArray[np.uint8], labels: NDArray[np.uint8], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Segmenter.train_step`; ConfigError if a part of the batch is one image."""
        self._refuse_single(len(images))
        keep = self._draw_drop_path(len(images))
        kept = self._draw_dropout(len(images))
        targets = labels.astype(np.int32)

        def take_inputs(rows: slice) -> tuple[Any, ...]:
            factors = None if keep is None else Tensor(keep[:, rows])
            channels = [None if array is None else Tensor(array[rows]) for array in kept]
            return Tensor(images[rows]), Tensor(targets[rows]), factors, *channels

        return self._take_step(len(images), take_inputs, lr, weight_decay)

    def segment_image(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        """See :meth:`ehm.backends.base.Segmenter.segment_image`."""
        self.measured_model.set_train(False)
        pixels = self._normalise(image)
        if self._config.inference.mode == "whole":
            return enlarge_argmax(self._score_whole(pixels), size)
        return enlarge_argmax(self._score_windows(pixels), size)

    def _score_whole(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score a whole image, on a canvas that many sizes of images share: (3, H, W) -> (C, H, W)."""
        _, height, width = pixels.shape
        widest = STRIDES[-1]
        # padded with the mean colour to a multiple of the widest stride, as with torch
        padded = np.pad(pixels, ((0, 0), (0, -height % widest), (0, -width % widest)))
        size = (padded.shape[1], padded.shape[2])
        sides = []
        for side, crop in zip(size, self.image_size, strict=True):
            sides.append(widest * enlarge_side(side // widest, max(crop // widest, 1)))
        canvas = (sides[0], sides[1])
        tokens = self.model.pyramid.lay_out(padded[None], canvas)
        inputs = (Tensor(tokens.patches), tokens.resampling, tokens.rotations, tokens.bias)
        scores = self._score_canvas(*inputs, *build_frame(size, canvas)).asnumpy()
        whole: NDArray[np.float32] = scores[0, :, :height, :width]
        return whole

    def _score_windows(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Average the scores of all windows of an image: (3, H, W) -> (C, H, W)."""
        _, height, width = pixels.shape
        h, w = self.image_size
        corners = place_windows((max(height, h), max(width, w)), (h, w), self._config.stride)
        total: NDArray[np.float32] | None = None
        counts = np.zeros((height, width), np.float32)
        for start in range(0, len(corners), self._group):
            chosen = corners[start : start + self._group]
            # 0 is the mean colour; windows that are not needed fill the last group, so that there is one graph
            windows = np.zeros((self._group, 3, h, w), np.float32)
            for window, (y, x) in zip(windows, chosen, strict=False):
                inside = pixels[:, y : y + h, x : x + w]
                window[:, : inside.shape[1], : inside.shape[2]] = inside
            scores = self._score(Tensor(windows)).asnumpy()
            if total is None:
                total = np.zeros((scores.shape[1], height, width), np.float32)
            for (y, x), window in zip(chosen, scores, strict=False):
                place = total[:, y : y + h, x : x + w]
                place += window[:, : place.shape[1], : place.shape[2]]
                counts[y : y + h, x : x + w] += 1
        assert total is not None
        return total / counts

    def _draw_dropout(self, images: int) -> list[NDArray[np.float32] | None]:
        """Draw the factors of the channels before both classifiers, (B, D, 1, 1): 0 or 1 / (1 - p); None without."""
        head = self._config.head
        if not head.dropout:
            return [None, None]
        rng = np.random.default_rng([*self._step_numbers(), 1])  # drop path has the numbers without it
        factors: list[NDArray[np.float32] | None] = []
        for channels in (head.channels, head.auxiliary_channels):
            is_kept = rng.random((images, channels, 1, 1)) >= head.dropout
            factors.append((is_kept / (1 - head.dropout)).astype(np.float32))
        return factors

    def _refuse_single(self, rows: int) -> None:
        """Raise ConfigError if a part of a batch is one image: batch norm of the map's mean needs two values."""
        optim = self._config.optim
        parts = [part.stop - part.start for part in split_batch(rows, optim.accumulate)]
        if min(parts) * self._processes.size < 2:
            refuse_single_images(optim, parts)


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross entropy of scores (B, C, H, W) against labels (B, H, W), in float32.

    It is the sum over pixels that count, divided by the number of all, as mmsegmentation does by default: the loss of a
    batch is the mean of its parts' losses then, whatever lies in them.
    """
    counts = labels != _IGNORED
    known = ops.where(counts, labels, ops.zeros_like(labels))
    shares = ops.gather_elements(ops.log_softmax(scores, axis=1), 1, known.expand_dims(1))
    return -(shares.squeeze(1) * counts.astype(ms.float32)).mean()


TASK_LEARNER = MindsporeSegmenter
"""The learner of the task that this file is named after; the backend finds it by that name."""
