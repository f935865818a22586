"""Checkpoints with random weights everywhere, and timm's own class filled from their files."""

from functools import partial

import numpy as np
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from ehm import backends
from ehm.config import DataConfig, FinetuneConfig, ModelSource, TrainConfig
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import save_checkpoint

LABELS = ["cat", "dog", "Käfer"]
MEAN, STD = (0.5, 0.45, 0.4), (0.2, 0.25, 0.3)
NUMBERS = {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}


def save(folder, arrays, meta):
    """A checkpoint with random weights everywhere: published initialisations leave heads and biases near zero."""
    rng = np.random.default_rng(7)
    for name, values in arrays.items():
        if name.endswith("running_var"):
            arrays[name] = rng.uniform(0.5, 2, values.shape).astype(np.float32)
        elif values.dtype == np.float32 and "norm" not in name:
            arrays[name] = rng.normal(0, 0.1, values.shape).astype(np.float32)
        elif values.dtype == np.float32:
            arrays[name] = rng.normal(0.8, 0.3, values.shape).astype(np.float32)
    state = LearnerState(arrays, {})
    return save_checkpoint(folder / "checkpoints", state, {"step": 3, "epoch": 1.0, "seed": 0, **meta})


def classifier(folder, size, **settings):
    source = ModelSource(init="scratch", width=32, depth=1, heads=2, image_size=size)
    config = FinetuneConfig(**{"model": source, "data": DataConfig(mean=MEAN, std=STD), **settings})
    made = backends.get("cpu").create_task_learner(config, len(LABELS))
    meta = {
        "kind": "classifier",
        "classes": LABELS,
        "encoder": made.architecture,
        "config": config.model_dump(mode="json"),
    }
    return save(folder, made.state().model, meta)


def pretrained(folder, size):
    model = {"width": 32, "depth": 1, "heads": 2, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    config = TrainConfig(model=model, image_size=size)
    arrays = backends.get("cpu").create_learner(config).state().model
    return save(folder, arrays, {"kind": "pretrain", "config": config.model_dump(mode="json")})


def timm_vit(path, size, **options):
    """timm's own class with the encoder's tensors in a checkpoint; ``strict`` but for the decoder's."""
    tensors = {
        name: value
        for name, value in load_file(path / "model.safetensors").items()
        if not name.startswith(("decoder", "mask_token"))
    }
    model = VisionTransformer(img_size=size, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), **NUMBERS, **options)
    return model.eval(), tensors
