"""One step of each task beside NumPy's formula of its loss: small networks with drawn weights.

Nothing in these steps is drawn at random, so that all devices compute the same: no dropout, no dropped paths, fewer
anchors than a detector samples, and codes whose logits or temperature leave nothing of the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend
from ehm.config import DetectionConfig, FinetuneConfig, RetrievalConfig, SegmentationConfig, TokenizerConfig
from ehm.data.instances import Instances
from ehm.errors import BackendError
from ehm.reference.classifier import compute_class_logits, compute_margin_logits, merge_updates, take_encoder
from ehm.reference.detector import Detector, Objects
from ehm.reference.layers import Floats, Weights, widen
from ehm.reference.losses import cross_entropy, measure_pixel_loss
from ehm.reference.maps import resize_bilinear
from ehm.reference.pyramid import compute_class_scores, compute_pyramid
from ehm.reference.tokenizer import compute_tokenizer_loss
from ehm.storage.arrays import Arrays, LearnerState
from ehm.storage.checkpoint import save_checkpoint
from ehm.verification.cases import create_learner, describe_run, draw_weights, load_weights
from ehm.verification.check import SkipError
from ehm.verification.small_tasks import CLASSES, IMAGES, SmallTask, create_task, draw_labels, make_pretraining_config

__all__ = ["STEPS", "Step"]

Loss = Callable[[Weights], float]
_LR = 1e-3
_SMOOTHING = 0.1
_MIXED = 0.7
"""Share of the first of two images that are mixed."""
_MARGIN = 0.5
_UPERNET_TAPS = (0, 0, 1, 1)
_AUXILIARY_WEIGHT = 0.4
_IGNORED = 255
_LORA = {"rank": 2, "alpha": 6.0, "targets": ["attn.qkv", "attn.proj", "mlp"]}
_LORA_FACTOR = 3.0
"""Factor of the update: alpha / rank."""
_DETECTION_SIDE = 32
_ANCHOR_SIZES = (4, 8, 12, 16, 24)
_RCNN_TAPS = (0, 0, 0, 1)
"""The last block of each quarter of two blocks."""
_KL_WEIGHT = 0.1
_HUGE = 1e8
"""Logits, or a temperature, of this size leave nothing of noise of size 1."""


@dataclass(frozen=True)
class Step:
    """The first step of a learner at ``weights``, by the names of its gradients.

    ``take`` returns its metrics, ``compute_loss`` is NumPy's loss. ``is_discrete`` says that a rounding may let other
    samples take part.
    """

    learner: Any
    weights: Weights
    betas: tuple[float, float]
    take: Callable[[], Mapping[str, Any]]
    compute_loss: Loss
    is_discrete: bool = False


def _prepare_classifier(mixing: str, backend: Backend) -> Step:
    right = np.eye(CLASSES, dtype=np.float32)[draw_labels()]
    smooth = right * (1 - _SMOOTHING) + _SMOOTHING / CLASSES
    mixed = _MIXED * smooth + (1 - _MIXED) * smooth[::-1]
    targets = {"labels": right, "smoothed": smooth, "mixed": mixed}[mixing]
    pool = "token" if mixing == "labels" else "avg"
    task = create_task(backend, FinetuneConfig, {"pool": pool})
    return _make_step(task, targets, _make_class_loss(task, targets))


def _prepare_updates(backend: Backend) -> Step:
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

    return replace(_make_step(task, targets, compute_loss), weights=weights)


def _prepare_embedder(backend: Backend) -> Step:
    task = create_task(backend, RetrievalConfig, {"optimizer": "adamw", "dim": 8, "margin": _MARGIN})
    labels = draw_labels()
    right = np.eye(CLASSES)[labels]
    pixels = task.pixels

    def compute_loss(moved: Weights) -> float:
        return cross_entropy(compute_margin_logits(task.spec, moved, pixels, labels, _MARGIN), right)

    return _make_step(task, labels, compute_loss)


def _prepare_segmenter(backend: Backend) -> Step:
    head: dict[str, Any] = {"channels": 8, "auxiliary_channels": 4, "auxiliary_weight": _AUXILIARY_WEIGHT}
    head |= {"dropout": 0, "taps": _UPERNET_TAPS}
    settings = {"crop_size": make_pretraining_config().image_size, "head": head}
    task = create_task(backend, SegmentationConfig, settings)
    labels = _draw_maps(task)
    pixels = task.pixels
    size = (pixels.shape[1], pixels.shape[2])

    def compute_loss(moved: Weights) -> float:
        levels = compute_pyramid(task.spec, take_encoder(moved, "pyramid."), pixels, _UPERNET_TAPS)
        scores, auxiliary = compute_class_scores(moved, levels)
        loss = measure_pixel_loss(resize_bilinear(scores, size), labels)
        return loss + _AUXILIARY_WEIGHT * measure_pixel_loss(resize_bilinear(auxiliary, size), labels)

    return _make_step(task, labels, compute_loss)


def _prepare_detector(backend: Backend) -> Step:
    settings: dict[str, Any] = {"min_size": _DETECTION_SIDE, "max_size": _DETECTION_SIDE, "width": 8}
    settings |= {"anchor_sizes": _ANCHOR_SIZES, "proposals": 2048}
    task = create_task(backend, DetectionConfig, settings, _DETECTION_SIDE)
    instances = [_draw_objects(number) for number in range(IMAGES)]
    objects = []
    for each in instances:
        assert each.masks is not None
        objects.append(Objects(each.boxes.astype(np.float64), each.labels + 1, each.masks))
    detector = Detector(task.spec, _ANCHOR_SIZES, _RCNN_TAPS, task.pixels, objects)
    proposals = detector.find_proposals(widen(task.weights))

    def compute_loss(moved: Weights) -> float:
        return sum(detector.compute_losses(moved, proposals).values())

    return replace(_make_step(task, instances, compute_loss), is_discrete=True)


def _prepare_tokenizer(sharp: bool, backend: Backend) -> Step:
    """Prepare a discrete VAE whose codes are certain before they are relaxed, or one that mixes all codes alike."""
    optim = {"batch_size": IMAGES, "epochs": 1, "warmup_epochs": 0, "dtype": "float32"}
    settings = {"vocabulary": 16, "width": 8, "image_size": 32, "kl_weight": _KL_WEIGHT, "optim": optim}
    config = TokenizerConfig.model_validate(settings)
    try:
        learner = backend.create_tokenizer(config)
    except BackendError as error:
        raise SkipError(str(error)) from error
    state = learner.state()
    weights = draw_weights(state.model)
    if sharp:
        for name, value in weights.items():
            if name.startswith("encoder.") and value.shape[:1] == (config.vocabulary,):
                weights[name] = value * np.float32(_HUGE)
    learner.load(LearnerState(dict(weights), dict(state.optimizer)))
    images = np.random.default_rng(23).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)

    def compute_loss(moved: Weights) -> float:
        error, divergence = compute_tokenizer_loss(moved, images / 255, _HUGE)
        return error + _KL_WEIGHT * divergence

    def take() -> Mapping[str, Any]:
        return learner.train_step(images, _HUGE, _LR, 0.0)

    return Step(learner, widen(weights), config.optim.betas, take, compute_loss)


def _make_class_loss(task: SmallTask, targets: NDArray[np.float32]) -> Loss:
    pixels = task.pixels
    config = task.config
    assert isinstance(config, FinetuneConfig)
    pool = config.pool
    assert pool != "map"

    def compute_loss(moved: Weights) -> float:
        return cross_entropy(compute_class_logits(task.spec, moved, pixels, pool), targets)

    return compute_loss


def _make_step(task: SmallTask, targets: Any, compute_loss: Loss) -> Step:
    def take() -> Mapping[str, Any]:
        metrics: Mapping[str, Any] = task.learner.train_step(task.images, targets, _LR, 0.0)
        return metrics

    return Step(task.learner, widen(task.weights), task.config.optim.betas, take, compute_loss)


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


def _draw_maps(task: SmallTask) -> NDArray[np.uint8]:
    """Draw the classes of all pixels (B, H, W), in rectangles, and a border that does not count."""
    rng = np.random.default_rng(19)
    count, height, width, _ = task.images.shape
    labels = np.zeros((count, height, width), np.uint8)
    for image in labels:
        for label in range(1, CLASSES):
            top = rng.integers(height // 2)
            left = rng.integers(width // 2)
            image[top : top + height // 2, left : left + width // 3] = label
    labels[:, :3] = _IGNORED
    return labels


def _draw_objects(number: int) -> Instances:
    """Draw two objects of an image: boxes, classes, and masks that fill a part of the boxes."""
    rng = np.random.default_rng([29, number])
    boxes = []
    masks = np.zeros((2, _DETECTION_SIDE, _DETECTION_SIDE), np.bool_)
    for mask in masks:
        left, top = rng.uniform(0, _DETECTION_SIDE / 2, 2)
        width, height = rng.uniform(_DETECTION_SIDE / 4, _DETECTION_SIDE / 2, 2)
        boxes.append([left, top, left + width, top + height])
        mask[int(top) : int(top + height), int(left) : int(left + width * 0.7)] = True
    return Instances(np.array(boxes, np.float32), rng.integers(0, CLASSES, 2), masks)


STEPS: dict[str, Callable[[Backend], Step]] = {
    "classification by labels": partial(_prepare_classifier, "labels"),
    "classification by smoothed labels": partial(_prepare_classifier, "smoothed"),
    "classification of mixed images": partial(_prepare_classifier, "mixed"),
    "classification by low-rank updates (LoRA)": _prepare_updates,
    "retrieval by ArcFace": _prepare_embedder,
    "segmentation by UperNet": _prepare_segmenter,
    "detection by Mask R-CNN": _prepare_detector,
    "tokenizer, certain codes": partial(_prepare_tokenizer, True),
    "tokenizer, mixed codes": partial(_prepare_tokenizer, False),
}
"""The steps by their names, and functions that prepare them for a backend."""
