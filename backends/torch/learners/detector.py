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
from ehm.backends.torch.engine.step import recompute_activations
from ehm.backends.torch.engine.tensors import upload_array
from ehm.backends.torch.learners.supervised import Supervised
from ehm.backends.torch.models.rcnn import build_rcnn
from ehm.config import DetectionConfig
from ehm.data.instances import Detections, Instances

__all__ = ["TorchDetector"]


class TorchDetector(Supervised):
    """Implements :class:`ehm.backends.base.Detector`. ``model`` is torchvision's module."""

    def __init__(
        self, config: DetectionConfig, classes: int, device: torch.device, processes: Processes = ALONE
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            model, loaded, image_size = build_rcnn(config, classes)
        if config.run.grad_checkpointing:
            recompute_activations(model, random=config.model.drop_path > 0)
        super().__init__(model, loaded, config, device, processes)
        self.image_size = image_size

    def train_step(
        self, images: Sequence[NDArray[np.uint8]], targets: Sequence[Instances], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Detector.train_step`. The terms are named as torchvision does."""
        self.model.train()
        terms: dict[str, Tensor] = {}

        def loss(rows: slice) -> Tensor:
            share = (rows.stop - rows.start) / len(images)
            with self._training.autocast():
                found = self._training.module(
                    self._upload(images[rows]), [self._target(each) for each in targets[rows]]
                )
            for name, value in found.items():
                terms[name] = terms.get(name, 0) + value.detach() * share
            return torch.stack([value.float() for value in found.values()]).sum()

        metrics = self._step(len(images), loss, lr, weight_decay)
        return {**metrics, **{name: mean_over_processes(value, self._processes) for name, value in terms.items()}}

    def detect_objects(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """See :meth:`ehm.backends.base.Detector.detect_objects`."""
        self.model.eval()
        # processes that share the parameters go through the model together, those without an image too
        shown = list(images) or [np.zeros((32, 32, 3), np.uint8)]
        with torch.no_grad(), self._training.autocast():
            found = self.model(self._upload(shown))
        return [_download_detections(each) for each in found[: len(images)]]

    def _upload(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        return [self._pixels(image[None])[0] for image in images]

    def _target(self, objects: Instances) -> dict[str, Tensor]:
        """As torchvision takes it, whose class 0 is the background."""
        target: dict[str, NDArray[Any]] = {"boxes": objects.boxes, "labels": objects.labels + 1}
        if objects.masks is not None:
            target["masks"] = objects.masks.view(np.uint8)
        return {name: upload_array(array, self._device) for name, array in target.items()}


def _download_detections(found: Mapping[str, Tensor]) -> Detections:
    masks = found.get("masks")
    return Detections(
        boxes=found["boxes"].float().cpu().numpy(),
        labels=found["labels"].cpu().numpy() - 1,
        masks=None if masks is None else (masks[:, 0] > 0.5).cpu().numpy(),
        scores=found["scores"].float().cpu().numpy(),
    )
