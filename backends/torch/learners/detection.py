"""Mask R-CNN with an encoder of ours, or of timm's, on one torch device.

Shapes: B images of H x W pixels, each of its own size, n objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehm.backends.base import ALONE, Processes
from ehm.backends.torch.engine.distributed import mean_over_processes
from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.step import recompute_activations
from ehm.backends.torch.engine.transfers import upload_array
from ehm.backends.torch.learners.supervised import SupervisedLearner
from ehm.backends.torch.models.rcnn import build_rcnn
from ehm.config import DetectionConfig
from ehm.data.instances import Detections, Instances
from ehm.models.weights import Weights

__all__ = ["TorchDetector"]


class TorchDetector(SupervisedLearner):
    """Implements :class:`ehm.backends.base.Detector`. ``model`` is torchvision's module."""

    def __init__(
        self,
        config: DetectionConfig,
        classes: int,
        device: torch.device,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        with seed_weights(config.run.seed):
            model, loaded, image_size = build_rcnn(config, classes, weights)
        if config.run.grad_checkpointing:
            recompute_activations(model, random=True)
        super().__init__(model, loaded, config, device, processes, convolves=True)
        self.image_size = image_size

    def train_step(
        self, images: Sequence[NDArray[np.uint8]], targets: Sequence[Instances], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Detector.train_step`. The terms are named as torchvision does."""
        self.model.train()
        terms: dict[str, Tensor] = {}

        def compute_loss(rows: slice) -> Tensor:
            share = (rows.stop - rows.start) / len(images)
            with self._training.autocast():
                losses = self._training.module(
                    self._upload_images(images[rows]), list(map(self._upload_target, targets[rows]))
                )
            for name, value in losses.items():
                terms[name] = terms.get(name, 0) + value.detach() * share
            return torch.stack([value.float() for value in losses.values()]).sum()

        metrics = self._take_step(len(images), compute_loss, lr, weight_decay)
        for name, value in terms.items():
            metrics[name] = mean_over_processes(value, self._processes)
        return metrics

    def detect_objects(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """See :meth:`ehm.backends.base.Detector.detect_objects`."""
        model = self.measured_model.eval()
        # processes that share the parameters go through the model together, those without an image too
        inputs = list(images) or [np.zeros((32, 32, 3), np.uint8)]
        with torch.no_grad(), self._training.autocast():
            outputs = model(self._upload_images(inputs))
        return list(map(_download_detections, outputs[: len(images)]))

    def _upload_images(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        return [self._pixels(image[None])[0] for image in images]

    def _upload_target(self, objects: Instances) -> dict[str, Tensor]:
        """Return the objects of an image in torchvision's form."""
        target: dict[str, NDArray[Any]] = {"boxes": objects.boxes, "labels": objects.labels + 1}  # 0 is the background
        if objects.masks is not None:
            target["masks"] = objects.masks.view(np.uint8)
        return {name: upload_array(array, self._device) for name, array in target.items()}


def _download_detections(output: Mapping[str, Tensor]) -> Detections:
    masks = output.get("masks")
    return Detections(
        boxes=output["boxes"].float().cpu().numpy(),
        labels=output["labels"].cpu().numpy() - 1,
        # pixels that more likely than not belong to the object
        masks=None if masks is None else (masks[:, 0] > 0.5).cpu().numpy(),
        scores=output["scores"].float().cpu().numpy(),
    )


TASK_LEARNER = TorchDetector
"""The learner of the task that this file is named after; the backend finds it by that name."""
