"""The tiny encoders that operators are recorded with: of each family and form, and saved ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ehm.backends.torch import TorchBackend
from ehm.backends.torch.engine.tensors import to_arrays
from ehm.backends.torch.models.dalle import DalleEncoder
from ehm.config import TokenizerConfig, TrainConfig
from ehm.storage.checkpoint import save_checkpoint

__all__ = [
    "ENCODERS",
    "FORMS",
    "IMAGES",
    "OPTIM",
    "join_settings",
    "make_images",
    "save_dalle_encoder",
    "save_encoder",
    "save_tokenizer",
]

IMAGES = 4
"""Images of a batch."""
ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {"encoder": "vit_tiny", "patch_size": 8, "model": {"width": 24, "depth": 2, "heads": 2}},
    "swin": {"encoder": "swin_tiny", "patch_size": 2, "model": {"width": 8, "depth": [2, 2, 1], "heads": [1, 2, 2]}},
}
"""The encoder of each family, for images of 32 pixels."""
_DINOV3_ANGLES = {"kind": "dinov3"}
_EVA_ANGLES = {"kind": "eva", "temperature": 10000.0, "halves": False, "reference_grid": [16, 16]}
FORMS: dict[str, dict[str, Any]] = {
    "dinov2": {"registers": 4, "prefix_positions": False, "layer_scale": True, "mlp": "swiglu_packed"},
    "dinov3": {
        **{"registers": 4, "added_positions": False, "rotary": _DINOV3_ANGLES, "layer_scale": True, "bias": False},
        **{"mlp": "swiglu", "norm_epsilon": 1e-5},
    },
    "eva02_clip": {
        "rotary": _EVA_ANGLES,
        "norm_values": True,
        "separate_heads": True,
        "mlp": "swiglu",
        "norm_mlp": True,
    },
    "clip": {"norm_before": True, "mlp": "quick_gelu"},
    "siglip": {"class_token": False, "attention_pool": True, "mlp": "gelu_tanh", "norm_queries": True},
    "aimv2": {
        **{"class_token": False, "norm": "rms", "norm_patches": True, "mlp": "swiglu"},
        **{"bias": False, "output_bias": False},
    },
}
"""The forms of published ViTs, as keys of ``model.form``; together they have whatever a form can have."""
OPTIM = {"batch_size": IMAGES, "epochs": 1, "warmup_epochs": 0, "accumulate": 2, "clip_grad": 1.0}


def make_images(side: int = 32) -> NDArray[np.uint8]:
    """Draw a batch of square images: (B, side, side, 3)."""
    return np.random.default_rng(0).integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)


def join_settings(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with those of ``more``; sections that both have are joined, key by key."""
    joined = dict(values)
    for name, value in more.items():
        both_are_sections = isinstance(value, Mapping) and isinstance(joined.get(name), Mapping)
        joined[name] = {**joined[name], **value} if both_are_sections else value
    return joined


def save_encoder(backend: TorchBackend, config: TrainConfig, folder: Path) -> str:
    """Save the untrained model of ``config`` in ``folder`` as a run of pretraining; return its path."""
    meta = {"kind": "pretrain", "step": 0, "epoch": 0, "config": config.model_dump(mode="json")}
    return str(save_checkpoint(folder, backend.create_learner(config).state(), meta))


def save_tokenizer(backend: TorchBackend, folder: Path) -> str:
    """Save an untrained tokenizer in ``folder``; return its path."""
    config = TokenizerConfig(vocabulary=16, width=8)
    meta = {"kind": "tokenizer", "step": 0, "epoch": 0, "config": config.model_dump(mode="json")}
    return str(save_checkpoint(folder, backend.create_tokenizer(config).state(), meta))


def save_dalle_encoder(folder: Path) -> str:
    """Save an untrained, narrow encoder of DALL-E's kind in ``folder``; return its path."""
    path = folder / "encoder.safetensors"
    save_file(to_arrays(DalleEncoder(vocabulary=16, width=8, blocks=1)), path)
    return str(path)
