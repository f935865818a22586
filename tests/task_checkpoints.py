"""Checkpoints of small networks for every task that ehm writes as a graph itself, with random weights everywhere."""

import numpy as np

from ehm import backends
from ehm.config import FinetuneConfig, RetrievalConfig, SegmentationConfig, TrainConfig
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import save_checkpoint

PLAIN = {"init": "scratch", "width": 24, "depth": 3, "heads": 3, "patch_size": 16, "image_size": 64, "drop_path": 0}
SWIN = {"init": "scratch", "encoder": "swin_tiny", "width": 12, "depth": [1, 1, 2, 1], "heads": [1, 2, 2, 3]}
SWIN |= {"window": 3, "image_size": [64, 96], "patch_size": 4, "drop_path": 0}
RELATIVE = {
    "objective": "simmim",
    "image_size": [32, 48],
    "patch_size": 8,
    "encoder": "vit_tiny",
    "model": {"width": 24, "depth": 3, "heads": 3, "drop_path": 0},
    "mask": {"unit": 16, "blocks": 2},
}
OPTIM = {"batch_size": 4, "epochs": 1, "warmup_epochs": 0, "dtype": "float32"}
HEAD = {"channels": 16, "auxiliary_channels": 8}


def scatter(arrays):
    """Give every parameter numbers under which errors would show: published initialisations have many zeros."""
    rng = np.random.default_rng(7)
    for name, values in arrays.items():
        if name.endswith("running_var"):
            arrays[name] = rng.uniform(0.5, 2, values.shape).astype(np.float32)
        elif values.ndim == 1 and name.endswith((".weight", "gamma_1", "gamma_2")):
            arrays[name] = rng.uniform(0.5, 1.5, values.shape).astype(np.float32)
        elif values.dtype == np.float32 and name not in ("power", "arcface.scale"):
            deviation = 0.5 if values.ndim < 2 or name.endswith("bias_table") else 1 / np.sqrt(values[0].size)
            arrays[name] = (deviation * rng.normal(size=values.shape)).astype(np.float32)


def scatter_updates(state, lora):
    """Give the low-rank updates of a learner's ``state`` numbers, and its merged weights their sums with them."""
    rng = np.random.default_rng(9)
    for key, values in state.optimizer.items():
        if not key.startswith("lora/"):
            continue
        weight = state.model[f"{key.removeprefix('lora/').rpartition('/')[0]}.weight"]
        drawn = (rng.normal(size=values.shape) / np.sqrt(values.shape[1])).astype(np.float32)
        state.optimizer[key] = weight if key.endswith("/weight") else drawn
    for key in list(state.optimizer):
        if key.startswith("lora/") and key.endswith("/A"):
            layer = key.removeprefix("lora/").removesuffix("/A")
            first, second = state.optimizer[key], state.optimizer[f"lora/{layer}/B"]
            state.model[f"{layer}.weight"] = state.model[f"{layer}.weight"] + second @ first * (lora.alpha / lora.rank)


def save_pretrained(folder, settings=RELATIVE):
    """Save a model in pretraining."""
    config = TrainConfig.model_validate({**settings, "optim": OPTIM})
    arrays = backends.get("cpu").create_learner(config).state().model
    scatter(arrays)
    return _save(folder, arrays, {"kind": "pretrain", "config": config.model_dump(mode="json")})


def save_classifier(folder, model, **settings):
    """Save a classifier of three classes."""
    config = FinetuneConfig.model_validate({"model": model, "optim": OPTIM, **settings})
    return _save_task(folder, config, "classifier")


def save_embedder(folder, model, **settings):
    """Save an embedder that learns three classes."""
    config = RetrievalConfig.model_validate({"model": model, "dim": 10, "optim": OPTIM, **settings})
    return _save_task(folder, config, "embedder")


def save_segmenter(folder, model, size, **settings):
    """Save a segmenter of three classes whose crops have a size."""
    values = {"model": model, "crop_size": size, "head": HEAD, "optim": {**OPTIM, "steps": 1}, **settings}
    return _save_task(folder, SegmentationConfig.model_validate(values), "segmenter")


def _save_task(folder, config, kind):
    made = backends.get("cpu").create_task_learner(config, 3)
    state = made.state()
    scatter(state.model)
    scatter_updates(state, config.lora)
    meta = {"kind": kind, "encoder": dict(made.architecture), "config": config.model_dump(mode="json")}
    meta |= {"classes": ["a", "b", "c"], "image_size": list(made.image_size)}
    return _save(folder, state.model, meta, take_updates(state))


def take_updates(state):
    """The low-rank updates of a learner's state, and the same numbers for those of its moving average."""
    updates = {key: values for key, values in state.optimizer.items() if key.startswith("lora/")}
    return updates | {key.replace("lora/", "lora_ema/", 1): values for key, values in updates.items()}


def _save(folder, arrays, meta, optimizer=None):
    return save_checkpoint(folder, LearnerState(arrays, optimizer or {}), {"step": 0, "epoch": 0.0, "seed": 0, **meta})
