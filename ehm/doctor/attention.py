"""A comparison of a device's attention with plain arithmetic, and the time that its first pass takes to compile.

An NPU whose attention silently came out uniform has happened (vllm-project/vllm-ascend issue 13699): nothing raises,
losses fall, and every hierarchy is noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Learner
from ehm.config import TrainConfig
from ehm.reference import vit as reference

__all__ = ["TOLERANCE", "AttentionMeasurement", "measure_attention"]

TOLERANCE = 0.1
"""The largest difference that rounding makes; bfloat16 makes 0.02 on a CPU, and a uniform attention about 1."""

_SHARPENING = 3.0
"""Factor on the blocks' query and key weights: attention of an untrained model is nearly uniform anyway."""


@dataclass(frozen=True)
class AttentionMeasurement:
    """The similarities of a tiny model on a device, beside those of :mod:`ehm.reference`."""

    error: float | None
    """The largest difference, as a share of the largest deviation of the reference's similarities from their mean.

    None if it is not a finite number.
    """
    compile_seconds: float
    """Seconds that the first pass took longer than the second: to compile it, or to load kernels."""


def measure_attention(backend: Backend, dtype: str) -> AttentionMeasurement:
    """Compare similarities in ``dtype`` on ``backend`` with the reference's, of the same tiny model and images."""
    config = _make_tiny_config(dtype)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    learner = backend.create_learner(config)
    state = learner.state()
    for name, array in state.model.items():
        if name.endswith("attn.qkv.weight"):
            array *= _SHARPENING
    learner.load(state)
    expected = reference.compute_similarity(config, state.model, images)
    measured, first_seconds = _time_similarity(learner, images)
    _, second_seconds = _time_similarity(learner, images)
    # A device of another package may return anything; NumPy would broadcast some wrong shapes.
    if measured.shape != expected.shape:
        raise ValueError(f"similarity has shape {measured.shape}, not {expected.shape}")
    error = float(np.abs(measured - expected).max() / np.abs(expected - expected.mean()).max())
    return AttentionMeasurement(error if isfinite(error) else None, max(first_seconds - second_seconds, 0.0))


def _time_similarity(learner: Learner, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Compute the similarities of ``images``; returns them and the seconds that this took."""
    begun = perf_counter()
    similarity = np.concatenate(list(learner.prepare_batch(images).compute_similarity()))
    return similarity, perf_counter() - begun


def _make_tiny_config(dtype: str) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "encoder": "vit_tiny",
            "image_size": 64,
            "model": {
                "width": 128,
                "depth": 2,
                "heads": 2,
                "decoder_width": 32,
                "decoder_depth": 1,
                "decoder_heads": 1,
            },
            "mask": {"blocks": 2},
            "optim": {"dtype": dtype, "batch_size": 2},
        }
    )
