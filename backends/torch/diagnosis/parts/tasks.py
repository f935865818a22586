"""The downstream tasks: a step and a measurement of each, on encoders of every family and form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ehm.backends.torch import TorchBackend
from ehm.backends.torch.diagnosis.parts.encoders import (
    ENCODERS,
    FORMS,
    IMAGES,
    OPTIM,
    join_settings,
    make_images,
    save_encoder,
)
from ehm.backends.torch.diagnosis.parts.pretraining import configure
from ehm.backends.torch.language.stand_in import create_language_model, create_word_tokenizer
from ehm.config import (
    DetectionConfig,
    FinetuneConfig,
    ProbeConfig,
    RetrievalConfig,
    SegmentationConfig,
    TaskConfig,
    VisionLanguageConfig,
)
from ehm.config.encoders import FAMILIES
from ehm.data.instances import Instances

__all__ = ["TASK_SETTINGS", "configure_task", "probe_encoder", "train_task"]

_CLASSES = 3
_CONFIGS: dict[str, type[TaskConfig]] = {
    "classification": FinetuneConfig,
    "detection": DetectionConfig,
    "segmentation": SegmentationConfig,
    "retrieval": RetrievalConfig,
    "vision_language": VisionLanguageConfig,
}
_SIZES: dict[str, dict[str, Any]] = {
    "detection": {"anchor_sizes": [4, 8, 16, 24, 32], "width": 16, "proposals": 16},
    "segmentation": {"head": {"channels": 16, "auxiliary_channels": 8}},
    "retrieval": {"dim": 8},
    "vision_language": {"resampler": {"latents": 2, "depth": 1, "heads": 2, "head_width": 8}},
}
TASK_SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "classification": (
        {"optimizer": "lars", "pool": "token", "run": {"grad_checkpointing": True}},
        {"optimizer": "sgd", "pool": "map", "model": {"freeze": 1, "form": FORMS["siglip"]}},
        {"loss": "binary_cross_entropy", "optim": {"ema_decay": 0.9}},
    ),
    "detection": ({"masks": False, "model": {"form": FORMS["dinov3"]}},),
    "segmentation": ({"inference": {"mode": "whole"}, "model": {"form": FORMS["dinov3"]}, "optimizer": "sgd"},),
    "retrieval": (
        {"pool": "token", "dim": None, "scales": [0.75, 1], "optimizer": "adamw"},
        {"pool": "map", "optimizer": "lars", "model": {"form": FORMS["siglip"]}},
        {"longest": 64, "model": {"form": FORMS["dinov3"]}},
    ),
    "vision_language": (
        {"frozen": True, "model": {"drop_path": 0.0}},
        {"run": {"grad_checkpointing": True}, "encoder_rate": 0.1},
    ),
}
"""Settings that each task is run with on a ViT, besides its plain recipe on every family of encoders."""
_SIDES = {"vit": 32, "swin": 128}
"""Pixels of an image's side: the last map of a Swin with four stages and patches of 4 has a 32nd of them."""
_SWIN = {"patch_size": 4, "depth": [1, 1, 2, 1], "heads": [1, 1, 2, 2]}
"""The Swin of tasks, whose maps have the four strides that pyramids are made of."""


def configure_task(task: str, family: str, dtype: str, settings: Mapping[str, Any]) -> TaskConfig:
    """Return the configuration of a tiny run of ``task``, with ``settings`` over those of its recipe."""
    encoder = ENCODERS[family]
    side = _SIDES[family]
    model = {"encoder": encoder["encoder"], "patch_size": encoder["patch_size"], **encoder["model"]}
    model |= {"image_size": side, "drop_path": 0.1}
    if family == "swin":
        model |= _SWIN
    sides = {"detection": {"min_size": side, "max_size": side}, "segmentation": {"crop_size": side}}
    values = {"model": model, "optim": {**OPTIM, "dtype": dtype, "steps": None, "warmup_steps": None}}
    values = join_settings(values, {**_SIZES.get(task, {}), **sides.get(task, {})})
    return _CONFIGS[task].model_validate(join_settings(values, settings))


def train_task(task: str, backend: TorchBackend, dtype: str) -> Iterator[Callable[[], object]]:
    """Yield the steps and the measurements of ``task``; none of vision_language without transformers."""
    with TemporaryDirectory() as folder:
        common: dict[str, Any] = {}
        if task == "vision_language":
            if find_spec("transformers") is None:
                return
            common["language"] = {"source": _save_language_model(backend, Path(folder) / "language"), "dtype": dtype}
        variants: list[tuple[str, dict[str, Any]]] = [(family, {}) for family in FAMILIES]
        variants += [("vit", settings) for settings in TASK_SETTINGS[task]]
        if task == "classification":
            variants += [("vit", {"model": {"form": form}}) for form in FORMS.values()]
        relative = save_encoder(backend, configure("simmim", "vit", dtype, {}), Path(folder))
        of_relative: dict[str, Any] = {"model": {"init": relative, "patch_size": None, "encoder": "vit_small"}}
        if find_spec("peft") is not None:
            of_relative["lora"] = {"rank": 2}
        variants.append(("vit", of_relative))
        for family, settings in variants:
            yield from _take_task_steps(backend, configure_task(task, family, dtype, {**common, **settings}))


def probe_encoder(backend: TorchBackend, dtype: str) -> Iterator[Callable[[], object]]:
    """Yield the steps and the measurements of a linear probe, and the features that neighbours are compared by."""
    for family in FAMILIES:
        task = configure_task("classification", family, dtype, {})
        pool = "token" if family == "vit" else "avg"
        config = ProbeConfig.model_validate({"model": task.model, "optim": task.optim, "pool": pool})
        yield from _take_task_steps(backend, config)
        encoder = backend.create_encoder(config.model)
        yield partial(encoder.compute_features, make_images(_SIDES[family]))


def _take_task_steps(backend: TorchBackend, config: TaskConfig) -> Iterator[Callable[[], object]]:
    """Yield the steps of ``config`` that differ, and what measures the model."""
    learner = backend.create_task_learner(config, _CLASSES)
    images = make_images(learner.image_size[0])
    take, measure = _STEPS[config.task](learner, images)
    yield take
    if config.optimizer != "adamw":
        yield take  # those that have a momentum only set it up in the first step
    if config.optim.last_ema_decay is not None:
        yield partial(learner.update_average, config.optim.last_ema_decay)
    yield measure


def _classify(learner: Any, images: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    targets = np.eye(_CLASSES, dtype=np.float32)[[0, 1, 2, 0]]
    # which the loss of one class an image leaves aside
    weights = np.ones(_CLASSES, np.float32)
    return (
        lambda: learner.train_step(images, targets, 1e-3, 0.05, weights),
        lambda: learner.compute_logits(images),
    )


def _detect(learner: Any, images: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    half = images.shape[1] // 2
    mask = np.zeros((1, *images.shape[1:3]), bool)
    mask[:, 2:half, 2:half] = True
    one = Instances(np.array([[2, 2, half, half]], np.float32), np.array([1]), mask)
    return (
        lambda: learner.train_step(list(images), [one] * IMAGES, 1e-3, 0.05),
        lambda: learner.detect_objects(list(images)),
    )


def _segment(learner: Any, images: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    labels = np.random.default_rng(0).integers(0, _CLASSES, images.shape[:3], np.uint8)
    size = images.shape[1] + 8, images.shape[2] + 8
    larger = np.zeros((*size, 3), np.uint8)
    return (
        lambda: learner.train_step(images, labels, 1e-3, 0.05),
        lambda: learner.segment_image(larger, (size[0] * 2, size[1] * 2)),
    )


def _describe(learner: Any, images: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    return (
        lambda: learner.train_step(images, np.array([0, 1, 2, 0]), 1e-3, 0.05),
        lambda: learner.compute_descriptors(images),
    )


def _answer(learner: Any, images: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    prompts = ["question: which colour? answer:", *["answer:"] * (IMAGES - 1)]
    answers = ["red", "yes", "a red one", "no"]
    return (
        lambda: learner.train_step(images, prompts, answers, 1e-3, 0.05),
        lambda: learner.answer(images, prompts),
    )


def _save_language_model(backend: TorchBackend, folder: Path) -> str:
    """Save an untrained, tiny language model in ``folder``; return its path."""
    tokenizer = create_word_tokenizer(["question: which colour? answer: a red one. yes no"], backend.device)
    create_language_model(tokenizer, 16, 2, 2, backend.device).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


_STEPS = {
    "classification": _classify,
    "detection": _detect,
    "segmentation": _segment,
    "retrieval": _describe,
    "vision_language": _answer,
}
"""A step of each task, and a measurement."""
