"""The learners of tasks on a device beside the CPU's: from the same weights and images, the same losses and weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ehm.backends.base import Backend
from ehm.config import FinetuneConfig, ProbeConfig, RetrievalConfig, SegmentationConfig, TaskConfig
from ehm.errors import BackendError
from ehm.verification.check import Measurement, SkipError

__all__ = ["TASKS", "compare_task"]

_SIDE = 64
_CLASSES = 3
_STEPS = 3
_SIZES = {"width": 64, "depth": 2, "heads": 2, "patch_size": 8, "image_size": _SIDE}
# nothing is left out at random: devices draw other numbers
_MODEL = {"encoder": "vit_tiny", **_SIZES, "drop_path": 0}
_OPTIM = {"batch_size": 4, "epochs": 1, "warmup_epochs": 0, "warmup_steps": None, "dtype": "float32"}
_LOSS_TOLERANCE = 2e-3
_WEIGHTS_TOLERANCE = 0.05
"""Largest difference of a weight, as a share of the largest change of all weights."""

TASKS: dict[str, tuple[type[TaskConfig], dict[str, Any], float]] = {
    "fine-tuning by AdamW": (FinetuneConfig, {"optimizer": "adamw"}, 1e-3),
    "linear probe by SGD": (ProbeConfig, {"optimizer": "sgd"}, 0.1),
    "linear probe by LARS": (ProbeConfig, {"optimizer": "lars"}, 1.0),
    "retrieval by ArcFace": (RetrievalConfig, {"dim": 8}, 1e-3),
    "segmentation by UperNet": (
        SegmentationConfig,
        {"crop_size": _SIDE, "head": {"channels": 16, "auxiliary_channels": 8, "dropout": 0}},
        1e-3,
    ),
}
"""The configuration, the settings and the learning rate of each task."""


def compare_task(backend: Backend, cpu: Backend, name: str) -> Iterator[Measurement]:
    """Take some steps of a task on both devices and compare losses and weights."""
    kind, settings, lr = TASKS[name]
    config = kind.model_validate({"model": _MODEL, "optim": _OPTIM, **settings})
    expected = cpu.create_task_learner(config, _CLASSES)
    try:
        learner = backend.create_task_learner(config, _CLASSES)
    except BackendError as error:
        raise SkipError(str(error)) from error
    learner.load(expected.state())
    start = expected.state().model
    take_step = _STEP_OF[kind]
    largest = 0.0
    for step in range(_STEPS):
        ours, theirs = (float(take_step(each, step, lr)["loss"]) for each in (learner, expected))
        largest = max(largest, abs(ours - theirs) / abs(theirs), key=_nan_first)
    yield Measurement("losses", largest, _LOSS_TOLERANCE, cpu.name)
    found, wanted = learner.state().model, expected.state().model
    # what a batch norm has counted and averaged moves much further than weights
    weights = [key for key in start if "running_" not in key and "num_batches" not in key]
    change = max(float(np.abs(wanted[key].astype(np.float64) - start[key]).max()) for key in weights)
    gap = max(float(np.abs(found[key].astype(np.float64) - wanted[key]).max()) for key in weights)
    yield Measurement("weights", gap / change, _WEIGHTS_TOLERANCE, f"{cpu.name}; as a share of the largest change")


def _nan_first(value: float) -> float:
    """Order numbers so that one that is no number is the largest."""
    return math.inf if math.isnan(value) else value


def _draw(step: int) -> tuple[np.random.Generator, Any]:
    rng = np.random.default_rng(step)
    return rng, rng.integers(0, 256, (4, _SIDE, _SIDE, 3), dtype=np.uint8)


def _classify(learner: Any, step: int, lr: float) -> Any:
    rng, images = _draw(step)
    targets = rng.dirichlet(np.ones(_CLASSES), len(images)).astype(np.float32)
    return learner.train_step(images, targets, lr, 0.05)


def _embed(learner: Any, step: int, lr: float) -> Any:
    rng, images = _draw(step)
    return learner.train_step(images, rng.integers(0, _CLASSES, len(images)), lr, 0.05)


def _segment(learner: Any, step: int, lr: float) -> Any:
    rng, images = _draw(step)
    labels = rng.integers(0, _CLASSES, images.shape[:3]).astype(np.uint8)
    return learner.train_step(images, labels, lr, 0.05)


_STEP_OF: dict[type[TaskConfig], Callable[[Any, int, float], Any]] = {
    FinetuneConfig: _classify,
    ProbeConfig: _classify,
    RetrievalConfig: _embed,
    SegmentationConfig: _segment,
}
"""The function that takes a step of a learner."""
