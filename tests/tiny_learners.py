"""Tiny learners of every objective and task on a CPU with torch, and a step of each, always on the same images."""

from functools import partial

import numpy as np
import torch

from ehm.backends.torch.learners.classification import TorchClassifier
from ehm.backends.torch.learners.detection import TorchDetector
from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.backends.torch.learners.retrieval import TorchEmbedder
from ehm.backends.torch.learners.segmentation import TorchSegmenter
from ehm.config import DetectionConfig, FinetuneConfig, RetrievalConfig, SegmentationConfig, TrainConfig
from ehm.data.instances import Instances

CPU = torch.device("cpu")
OPTIM = {"batch_size": 4, "epochs": 1, "warmup_epochs": 0, "warmup_steps": None, "dtype": "float32"}
PRETRAINING = {
    "mae": {
        "objective": "mae",
        "encoder": "vit_tiny",
        "patch_size": 8,
        "model": {"width": 24, "depth": 3, "heads": 3, "decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2},
    },
    "simmim": {
        "objective": "simmim",
        "encoder": "vit_tiny",
        "patch_size": 8,
        "model": {"width": 24, "depth": 3, "heads": 3, "drop_path": 0},
    },
    "swin": {
        "objective": "simmim",
        "encoder": "swin_tiny",
        "patch_size": 2,
        "model": {"width": 16, "depth": [2, 1, 1], "heads": [1, 2, 2]},
    },
}
"""The settings of each objective, and of SimMIM with a Swin."""
ENCODERS = {
    "vit": {"encoder": "vit_tiny", "width": 24, "depth": 3, "heads": 3, "patch_size": 8},
    "swin": {"encoder": "swin_tiny", "width": 16, "depth": [1, 1, 2, 1], "heads": [1, 1, 2, 2], "patch_size": 4},
}
TASKS = {
    "classification": (TorchClassifier, FinetuneConfig, {}),
    "retrieval": (TorchEmbedder, RetrievalConfig, {"dim": 8}),
    "segmentation": (
        TorchSegmenter,
        SegmentationConfig,
        {"crop_size": 32, "head": {"channels": 16, "auxiliary_channels": 8}},
    ),
    "detection": (
        TorchDetector,
        DetectionConfig,
        {"min_size": 32, "max_size": 32, "anchor_sizes": [4, 8, 16, 24, 32], "width": 16, "proposals": 16},
    ),
}
"""The learner, the configuration and the settings of each task."""


def join(values, sections):
    joined = dict(values)
    for name, section in sections.items():
        joined[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return joined


def pretraining_config(kind, **sections):
    values = {"image_size": 32, "mask": {"unit": 8, "ratio": 0.5, "blocks": 2}, "optim": OPTIM, **PRETRAINING[kind]}
    return TrainConfig.model_validate(join(values, sections))


def pretraining(kind, **sections):
    """A learner of ``PRETRAINING``, with settings section by section."""
    return TorchLearner(pretraining_config(kind, **sections), CPU)


def task_learner(task, encoder="vit", weights=None, **sections):
    """A learner of ``TASKS`` with one of ``ENCODERS``, with settings section by section."""
    kind, config, values = TASKS[task]
    size = 128 if encoder == "swin" else 32  # a Swin's last map has a 32nd of the pixels' rows
    values = {**values, "model": {**ENCODERS[encoder], "image_size": size, "drop_path": 0.0}, "optim": OPTIM}
    if size != 32:
        values |= {"segmentation": {"crop_size": size}, "detection": {"min_size": size, "max_size": size}}.get(task, {})
    return kind(config.model_validate(join(values, sections)), 2, CPU, weights=weights)


def take_step(learner, lr=0.01, weight_decay=0.05):
    """A step of any of these learners; those in pretraining look at the similarity first."""
    rng = np.random.default_rng(0)
    side = getattr(learner, "image_size", (32, 32))[0]
    images = rng.integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    step = partial(learner.train_step, lr=lr, weight_decay=weight_decay)
    if isinstance(learner, TorchLearner):
        prepared = learner.prepare_batch(images)
        list(prepared.compute_similarity())
        return step(prepared, np.repeat(rng.permutation(16)[None] < 8, 4, axis=0))
    if isinstance(learner, TorchClassifier):
        return step(images, rng.dirichlet(np.ones(2), 4).astype(np.float32))
    if isinstance(learner, TorchEmbedder):
        return step(images, np.array([0, 1, 1, 0]))
    if isinstance(learner, TorchSegmenter):
        return step(images, rng.integers(0, 2, (4, side, side), dtype=np.uint8))
    half = side // 2
    mask = np.zeros((1, side, side), bool)
    mask[:, 2:half, 2:half] = True
    one = Instances(np.array([[2, 2, half, half]], np.float32), np.array([1]), mask)
    return step(list(images), [one] * 4)


def take_steps(learner, count):
    """So many of these steps; returns the learner."""
    for _ in range(count):
        take_step(learner)
    return learner


def assert_only_these_stay(before, after, frozen):
    """Arrays whose names are ``frozen`` have to be the same bit for bit, and all others to have moved."""
    for name, array in after.items():
        stays = np.array_equal(before[name], array)
        assert stays == frozen(name), name


def assert_same_state(left, right):
    for ours, theirs in ((left.model, right.model), (left.optimizer, right.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
