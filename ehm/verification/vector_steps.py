"""One step of classifiers and descriptors beside NumPy's formula of their loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend
from ehm.config import FinetuneConfig, RetrievalConfig
from ehm.reference.classifier import compute_class_logits, compute_margin_logits, merge_updates
from ehm.reference.layers import Floats, Weights, widen
from ehm.reference.losses import cross_entropy
from ehm.storage.arrays import Arrays, LearnerState
from ehm.storage.checkpoint import save_checkpoint
from ehm.verification.cases import create_learner, describe_run, load_weights
from ehm.verification.small_tasks import (
    CLASSES,
    Loss,
    SmallTask,
    Step,
    create_task,
    draw_labels,
    make_pretraining_config,
    make_step,
)

__all__ = ["prepare_classifier", "prepare_embedder", "prepare_updates"]

_SMOOTHING = 0.1
_MIXED = 0.7
"""Share of the first of two images that are mixed."""
_MARGIN = 0.5
_LORA = {"rank": 2, "alpha": 6.0, "targets": ["attn.qkv", "attn.proj", "mlp"]}
_LORA_FACTOR = 3.0
"""Factor of the update: alpha / rank."""


def prepare_classifier(mixing: str, backend: Backend) -> Step:
    """Prepare fine-tuning by ``labels``, by ``smoothed`` ones, or by those of ``mixed`` images."""
    right = np.eye(CLASSES, dtype=np.float32)[draw_labels()]
    smooth = right * (1 - _SMOOTHING) + _SMOOTHING / CLASSES
    mixed = _MIXED * smooth + (1 - _MIXED) * smooth[::-1]
    targets = {"labels": right, "smoothed": smooth, "mixed": mixed}[mixing]
    pool = "token" if mixing == "labels" else "avg"
    task = create_task(backend, FinetuneConfig, {"pool": pool})
    return make_step(task, targets, _make_class_loss(task, targets))


def prepare_updates(backend: Backend) -> Step:
    """Prepare low-rank updates of all linear layers of an encoder, under a head that learns too."""
    config = make_pretraining_config()
    learner = create_learner(backend, config)
    load_weights(learner)
    targets = np.eye(CLASSES, dtype=np.float32)[draw_labels()]
    with TemporaryDirectory() as folder:
        start = save_checkpoint(Path(folder), learner.state(), describe_run(config))
        source = {"init": str(start), "drop_path": 0}
        task = create_task(backend, FinetuneConfig, {"pool": "avg", "lora": _LORA}, source=source)
    weights = _load_updates(task)
    compute_merged = _make_class_loss(task, targets)

    def compute_loss(moved: Weights) -> float:
        return compute_merged(merge_updates(moved, _LORA_FACTOR))

    return replace(make_step(task, targets, compute_loss), weights=weights)


def prepare_embedder(backend: Backend) -> Step:
    """Prepare a descriptor by the generalised mean, whitening and ArcFace."""
    task = create_task(backend, RetrievalConfig, {"optimizer": "adamw", "dim": 8, "margin": _MARGIN})
    labels = draw_labels()
    right = np.eye(CLASSES)[labels]
    pixels = task.pixels

    def compute_loss(moved: Weights) -> float:
        return cross_entropy(compute_margin_logits(task.spec, moved, pixels, labels, _MARGIN), right)

    return make_step(task, labels, compute_loss)


def _make_class_loss(task: SmallTask, targets: NDArray[np.float32]) -> Loss:
    pixels = task.pixels
    config = task.config
    assert isinstance(config, FinetuneConfig)
    pool = config.pool
    assert pool != "map"

    def compute_loss(moved: Weights) -> float:
        return cross_entropy(compute_class_logits(task.spec, moved, pixels, pool), targets)

    return compute_loss


def _load_updates(task: SmallTask) -> dict[str, Floats]:
    """Load drawn updates, which are zero in a fresh learner; return all weights, those of the updates by peft's names.

    A state has the parts of each layer's weight among the optimiser's arrays, as ``lora/LAYER/weight``, ``/A``, ``/B``.
    """
    state = task.learner.state()
    drawn: Arrays = {}
    weights = widen(task.weights)
    for number, (key, array) in enumerate(sorted(state.optimizer.items())):
        prefix, _, rest = key.partition("/")
        layer, _, part = rest.rpartition("/")
        if prefix != "lora" or part == "weight":
            continue
        value = np.random.default_rng([17, number]).normal(size=array.shape) / np.sqrt(array.shape[1])
        drawn[key] = value.astype(np.float32)
        weights[f"{layer}.lora_{part}.default.weight"] = drawn[key].astype(np.float64)
    task.learner.load(LearnerState(dict(task.weights), {**state.optimizer, **drawn}))
    return weights
