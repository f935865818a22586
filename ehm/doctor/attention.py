"""A comparison of a device's attention with plain arithmetic.

An NPU whose attention silently came out uniform has happened (vllm-project/vllm-ascend issue 13699): nothing raises,
losses fall, and every hierarchy is noise.
"""

from __future__ import annotations

from math import isfinite

import numpy as np

from ehm.backends.base import Backend
from ehm.config import TrainConfig
from ehm.reference import vit as reference

__all__ = ["TOLERANCE", "measure_attention_error"]

TOLERANCE = 0.1
"""The largest difference that rounding makes; bfloat16 makes 0.02 on a CPU, and a uniform attention about 1."""

_SHARPENING = 3.0
"""Factor on the blocks' query and key weights: attention of an untrained model is nearly uniform anyway."""


def measure_attention_error(backend: Backend, dtype: str) -> float | None:
    """Measure how far similarities in ``dtype`` on ``backend`` are from those of :mod:`ehm.reference`.

    Both are of the same tiny model and images. Returns the largest difference, as a share of the largest deviation of
    the reference's similarities from their mean, or None if it is not a finite number.
    """
    config = _tiny_config(dtype)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    learner = backend.create_learner(config)
    state = learner.state()
    for name, array in state.model.items():
        if name.endswith("attn.qkv.weight"):
            array *= _SHARPENING
    learner.load(state)
    expected = reference.compute_similarity(config, state.model, images)
    measured = np.concatenate(list(learner.prepare_batch(images).compute_similarity()))
    # A device of another package may return anything; NumPy would broadcast some wrong shapes.
    if measured.shape != expected.shape:
        raise ValueError(f"similarity has shape {measured.shape}, not {expected.shape}")
    error = float(np.abs(measured - expected).max() / np.abs(expected - expected.mean()).max())
    return error if isfinite(error) else None


def _tiny_config(dtype: str) -> TrainConfig:
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
