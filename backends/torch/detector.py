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

from ehm.backends.base import ALONE, LearnerState, Processes
from ehm.backends.common import STEP, entropy
from ehm.backends.torch.distributed import mean
from ehm.backends.torch.models.pyramid import nested_layers
from ehm.backends.torch.models.rcnn import build_rcnn
from ehm.backends.torch.optim import param_groups
from ehm.backends.torch.tensors import Pixels, load_arrays, to_arrays, upload
from ehm.backends.torch.training import Training, recompute, seeded
from ehm.config import DetectionConfig
from ehm.instances import Detections, Instances

__all__ = ["TorchDetector"]


class TorchDetector:
    """Implements :class:`ehm.backends.base.Detector`. ``model`` is torchvision's module."""

    def __init__(
        self, config: DetectionConfig, classes: int, device: torch.device, processes: Processes = ALONE
    ) -> None:
        self._config, self._device, self._processes = config, device, processes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            self.model, loaded, self.image_size = build_rcnn(config, classes)
        self.model.to(device)
        self.architecture: Mapping[str, Any] = loaded.architecture
        self.notes = loaded.notes
        if self.notes and (loaded.mean, loaded.std) != (config.data.mean, config.data.std):
            self.notes += (
                f"these weights are taken as trained with data.mean {loaded.mean} and data.std {loaded.std}",
            )
        if config.run.grad_checkpointing:
            recompute(self.model, random=config.model.drop_path > 0)
        self._training = Training(
            self.model,
            lambda fused: _optimizer(self.model, config, fused),
            config.optim,
            config.run,
            device,
            processes,
        )
        self._pixels = Pixels(device, config.data.mean, config.data.std)
        self._steps = 0

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

        # drop path, the sizes that images get, and the boxes that are sampled
        with seeded(self._device, entropy(self._config.run.seed, self._steps, self._processes.rank)):
            metrics = self._training.step(len(images), loss, lr, weight_decay)
        self._steps += 1
        return {**metrics, **{name: mean(value, self._processes) for name, value in terms.items()}}

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """See :meth:`ehm.backends.base.Detector.detect`."""
        self.model.eval()
        # processes that share the parameters go through the model together, those without an image too
        shown = list(images) or [np.zeros((32, 32, 3), np.uint8)]
        with torch.no_grad(), self._training.autocast():
            found = self.model(self._upload(shown))
        return [_download(each) for each in found[: len(images)]]

    def state(self) -> LearnerState:
        """See :meth:`ehm.backends.base.Learner.state`."""
        return LearnerState(to_arrays(self.model), {**self._training.state(), STEP: np.array(self._steps, np.int64)})

    def load(self, state: LearnerState) -> None:
        """See :meth:`ehm.backends.base.Learner.load`."""
        load_arrays(self.model, state.model)
        moments = dict(state.optimizer)
        self._steps = int(moments.pop(STEP, np.array(0)))
        self._training.load(moments)

    def _upload(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        return [self._pixels(image[None])[0] for image in images]

    def _target(self, objects: Instances) -> dict[str, Tensor]:
        """As torchvision takes it, whose class 0 is the background."""
        target: dict[str, NDArray[Any]] = {"boxes": objects.boxes, "labels": objects.labels + 1}
        if objects.masks is not None:
            target["masks"] = objects.masks.view(np.uint8)
        return {name: upload(array, self._device) for name, array in target.items()}


def _download(found: Mapping[str, Tensor]) -> Detections:
    masks = found.get("masks")
    return Detections(
        boxes=found["boxes"].float().cpu().numpy(),
        labels=found["labels"].cpu().numpy() - 1,
        masks=None if masks is None else (masks[:, 0] > 0.5).cpu().numpy(),
        scores=found["scores"].float().cpu().numpy(),
    )


def _optimizer(model: Any, config: DetectionConfig, fused: bool) -> torch.optim.Optimizer:
    encoder = model.backbone.pyramid.encoder
    skip = encoder.no_weight_decay() if hasattr(encoder, "no_weight_decay") else ()
    layers = nested_layers(model) if config.layer_decay < 1 else None
    groups = param_groups(
        model.named_parameters(), {f"backbone.pyramid.encoder.{name}" for name in skip}, config.layer_decay, layers
    )
    return torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas, fused=fused)
