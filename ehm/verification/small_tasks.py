"""The small learners of tasks that are checked beside NumPy, and their steps: a ViT with drawn weights under heads.

Nothing in these steps is drawn at random, so that all devices compute the same: no dropout, no dropped paths, fewer
anchors than a detector samples, and codes whose logits or temperature leave nothing of the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend
from ehm.config import TaskConfig, TrainConfig
from ehm.config.encoders import VitSpec
from ehm.errors import BackendError
from ehm.reference.layers import Floats, Weights, normalise_pixels, widen
from ehm.storage.arrays import Arrays, LearnerState
from ehm.verification.cases import draw_images, draw_weights
from ehm.verification.check import SkipError

__all__ = [
    "CLASSES",
    "IMAGES",
    "LR",
    "Loss",
    "SmallTask",
    "Step",
    "create_task",
    "draw_labels",
    "make_pretraining_config",
    "make_step",
]

Loss = Callable[[Weights], float]

CLASSES = 3
IMAGES = 4
SIDE = 64
"""Side of the images in pixels; those of detection are half as large."""
LR = 1e-3
_MODEL = {"width": 32, "depth": 2, "heads": 2, "patch_size": 16, "drop_path": 0}
_OPTIM = {"batch_size": IMAGES, "epochs": 1, "warmup_epochs": 0, "warmup_steps": None, "dtype": "float32"}


@dataclass(frozen=True)
class SmallTask:
    """A learner on a device, the ``weights`` that it began with, and the ``images`` (B, H, W, 3) of a step."""

    learner: Any
    config: TaskConfig
    spec: VitSpec
    weights: Arrays
    images: NDArray[np.uint8]

    @property
    def pixels(self) -> Floats:
        """The images as the learner normalises them."""
        return normalise_pixels(self.images, self.learner.inputs.mean, self.learner.inputs.std)


@dataclass(frozen=True)
class Step:
    """The first step of a learner at ``weights``, by the names of its gradients.

    ``take`` returns its metrics, ``compute_loss`` is NumPy's loss.
    """

    learner: Any
    weights: Weights
    betas: tuple[float, float]
    take: Callable[[], Mapping[str, Any]]
    compute_loss: Loss


def make_pretraining_config(side: int = SIDE) -> TrainConfig:
    """Return the configuration of pretraining with the encoder of these tasks."""
    model = {name: _MODEL[name] for name in ("width", "depth", "heads", "drop_path")}
    return TrainConfig.model_validate(
        {
            "encoder": "vit_tiny",
            "image_size": side,
            "patch_size": _MODEL["patch_size"],
            "mask": {"unit": _MODEL["patch_size"], "blocks": 2},
            "model": {**model, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
            "optim": _OPTIM,
        }
    )


def create_task(
    backend: Backend,
    kind: type[TaskConfig],
    settings: Mapping[str, Any],
    side: int = SIDE,
    source: Mapping[str, Any] | None = None,
) -> SmallTask:
    """Create a learner of ``kind`` and load drawn weights; ``source`` stands for ``model`` if it is no fresh encoder.

    Raises SkipError if the backend lacks such a learner.
    """
    model = {"encoder": "vit_tiny", "image_size": side, **_MODEL} if source is None else source
    config = kind.model_validate({"model": model, "optim": _OPTIM, **settings})
    try:
        learner = backend.create_task_learner(config, CLASSES)
    except BackendError as error:
        raise SkipError(str(error)) from error
    state = learner.state()
    weights = draw_weights(state.model)
    learner.load(LearnerState(dict(weights), dict(state.optimizer)))
    pretraining = make_pretraining_config(side)
    spec = pretraining.spec
    assert isinstance(spec, VitSpec)
    return SmallTask(learner, config, spec, weights, draw_images(pretraining, IMAGES))


def draw_labels() -> NDArray[np.int64]:
    """Return the class of each image (B,)."""
    return np.arange(IMAGES) % CLASSES


def make_step(task: SmallTask, targets: Any, compute_loss: Loss) -> Step:
    """Return the first step of the learner of ``task`` with ``targets``."""

    def take() -> Mapping[str, Any]:
        metrics: Mapping[str, Any] = task.learner.train_step(task.images, targets, LR, 0.0)
        return metrics

    return Step(task.learner, widen(task.weights), task.config.optim.betas, take, compute_loss)
