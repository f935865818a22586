"""What the published recipe of a method says otherwise than MAE's, which the defaults of the sections are.

Values that a configuration gives itself come first. Learning rates are per 256 images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehm.config.encoders import SWIN_PRESETS

__all__ = ["with_recipe"]

_OBJECTIVES: dict[str, dict[str, Any]] = {
    # Xie et al., 2022, and microsoft/SimMIM, configs/vit_base__800ep and configs/swin_base__100ep
    "simmim": {
        "model": {"drop_path": 0.1},
        "mask": {"ratio": 0.6, "unit": 32},
        "data": {"crop_scale": (0.67, 1)},
        "optim": {
            "batch_size": 2048,
            "base_lr": 5e-5,
            "warmup_epochs": 10,
            "betas": (0.9, 0.999),
            "clip_grad": 5.0,
        },
    },
    # Bao et al., 2022, and microsoft/unilm, beit/get_started_for_image_classification.md
    "beit": {
        "model": {"drop_path": 0.1},
        "mask": {"ratio": 0.4},
        "data": {
            "crop_scale": (0.08, 1),
            "color_jitter": 0.4,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
        },
        "optim": {
            "batch_size": 2048,
            "base_lr": 1.875e-4,
            "warmup_epochs": 10,
            "betas": (0.9, 0.999),
            "clip_grad": 3.0,
        },
    },
}

_SWIN: dict[str, Any] = {"image_size": 192, "patch_size": 4, "model": {"drop_path": 0.0}}
"""SimMIM's Swin-B."""


def with_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of a pretraining run, and beneath them those of its objective's and its encoder's recipe."""
    recipe = _OBJECTIVES.get(str(values.get("objective")), {})
    if str(values.get("encoder")) in SWIN_PRESETS:
        recipe = _over(_SWIN, recipe)
    return _over(values, recipe)


def _over(values: Mapping[str, Any], beneath: Mapping[str, Any]) -> dict[str, Any]:
    """``beneath``, and over it ``values``, section by section."""
    merged = {**beneath, **values}
    for key in values.keys() & beneath.keys():
        if isinstance(values[key], Mapping) and isinstance(beneath[key], Mapping):
            merged[key] = {**beneath[key], **values[key]}
    return merged
