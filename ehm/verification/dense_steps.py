"""One step of segmentation, detection and the tokenizer beside NumPy's formula of their loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend
from ehm.config import DetectionConfig, SegmentationConfig, TokenizerConfig
from ehm.data.instances import Instances
from ehm.errors import BackendError
from ehm.reference.classifier import take_encoder
from ehm.reference.detector import Detector, Objects
from ehm.reference.layers import Weights, widen
from ehm.reference.losses import measure_pixel_loss
from ehm.reference.maps import resize_bilinear
from ehm.reference.pyramid import compute_class_scores, compute_pyramid
from ehm.reference.tokenizer import compute_tokenizer_loss
from ehm.storage.arrays import LearnerState
from ehm.verification.cases import draw_weights
from ehm.verification.check import SkipError
from ehm.verification.small_tasks import (
    CLASSES,
    IMAGES,
    LR,
    SmallTask,
    Step,
    create_task,
    make_pretraining_config,
    make_step,
)

__all__ = ["prepare_detector", "prepare_segmenter", "prepare_tokenizer"]

_UPERNET_TAPS = (0, 0, 1, 1)
_AUXILIARY_WEIGHT = 0.4
_IGNORED = 255
_DETECTION_SIDE = 32
_ANCHOR_SIZES = (4, 8, 12, 16, 24)
_RCNN_TAPS = (0, 0, 0, 1)
"""The last block of each quarter of two blocks."""
_KL_WEIGHT = 0.1
_CODE_SIZE = 8
_HUGE = 1e8
"""Logits, or a temperature, of this size leave nothing of noise of size 1."""


def prepare_segmenter(backend: Backend) -> Step:
    """Prepare UperNet with its auxiliary head; some pixels do not count."""
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

    return make_step(task, labels, compute_loss)


def prepare_detector(backend: Backend) -> Step:
    """Prepare Mask R-CNN on images so small that all their anchors and proposals take part."""
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

    return make_step(task, instances, compute_loss)


def prepare_tokenizer(sharp: bool, backend: Backend) -> Step:
    """Prepare a discrete VAE whose codes are certain before they are relaxed, or one that mixes all codes alike."""
    optim = {"batch_size": IMAGES, "epochs": 1, "warmup_epochs": 0, "dtype": "float32"}
    # of codes that are certain, the divergence jumps wherever a rounding lets another one win
    kl_weight = 0.0 if sharp else _KL_WEIGHT
    settings = {"vocabulary": 24, "width": 32, "image_size": 32, "kl_weight": kl_weight, "optim": optim}
    config = TokenizerConfig.model_validate(settings)
    try:
        learner = backend.create_tokenizer(config)
    except BackendError as error:
        raise SkipError(str(error)) from error
    state = learner.state()
    weights = draw_weights(state.model)
    # large enough for the decoder's ReLUs to let something through
    weights["codebook"] = weights["codebook"] * np.float32(_CODE_SIZE)
    if sharp:
        for name, value in weights.items():
            if name.startswith("encoder.") and value.shape[:1] == (config.vocabulary,):
                weights[name] = value * np.float32(_HUGE)
    learner.load(LearnerState(dict(weights), dict(state.optimizer)))
    images = np.random.default_rng(23).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)

    def compute_loss(moved: Weights) -> float:
        error, divergence = compute_tokenizer_loss(moved, images / 255, _HUGE)
        return error + kl_weight * divergence

    def take() -> Mapping[str, Any]:
        return learner.train_step(images, _HUGE, LR, 0.0)

    return Step(learner, widen(weights), config.optim.betas, take, compute_loss)


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
