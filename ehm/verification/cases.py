"""The models that are checked: every kind of block under every objective, at the sizes that kernels treat differently.

Their weights are drawn by NumPy, the same ones with every framework, and far from zero: at the small numbers that
training begins with, much that is wrong would not show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Learner
from ehm.config import TrainConfig
from ehm.errors import BackendError
from ehm.storage.arrays import Arrays, LearnerState, join_average
from ehm.verification.check import SkipError

__all__ = [
    "GRIDS",
    "KINDS",
    "Case",
    "create_learner",
    "describe_run",
    "draw_images",
    "draw_masks",
    "draw_weights",
    "list_cases",
    "load_weights",
]

_IMAGES = 2
"""Images of a batch."""
GRIDS = {50: 7, 65: 8, 197: 14}
"""Patches along a side, by the number of tokens with a class token."""
_HEADS = 2
_DECODER = {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2}
_ROTARY_DINOV3 = {"kind": "dinov3", "temperature": 100.0, "halves": True}
_ROTARY_EVA = {"kind": "eva", "temperature": 10000.0, "halves": False, "reference_grid": [16, 16]}

KINDS: dict[str, dict[str, Any]] = {
    "plain ViT, MAE": {"objective": "mae"},
    "plain ViT, MAE of raw pixels": {"objective": "mae", "model": {"norm_pix_loss": False}},
    "relative positions, SimMIM": {"objective": "simmim"},
    "relative positions, BEiT": {"objective": "beit"},
    "plain ViT, features by smooth L1": {"objective": "feature"},
    "plain ViT, features by cosine": {"objective": "feature", "model": {"loss": "cosine"}},
    "Swin, SimMIM": {"objective": "simmim", "encoder": "swin_tiny"},
    "rotary positions, SwiGLU and registers (DINOv3), MAE": {
        "objective": "mae",
        "form": {
            "registers": 4,
            "added_positions": False,
            "rotary": _ROTARY_DINOV3,
            "layer_scale": True,
            "mlp": "swiglu",
        },
    },
    "rotary positions and inner norms (EVA-02), features": {
        "objective": "feature",
        "form": {
            "rotary": _ROTARY_EVA,
            "separate_heads": True,
            "mlp": "swiglu",
            "norm_values": True,
            "norm_mlp": True,
        },
    },
    "packed SwiGLU and layer scale (DINOv2), SimMIM": {
        "objective": "simmim",
        "form": {"registers": 4, "prefix_positions": False, "layer_scale": True, "mlp": "swiglu_packed"},
    },
    "root mean square norms without biases (AIMv2), MAE": {
        "objective": "mae",
        "form": {
            "class_token": False,
            "norm": "rms",
            "norm_patches": True,
            "bias": False,
            "output_bias": False,
            "mlp": "swiglu",
        },
    },
    "norm before the blocks, quick GELU (CLIP), MAE": {
        "objective": "mae",
        "form": {"norm_before": True, "mlp": "quick_gelu", "norm_epsilon": 1e-5},
    },
    "normed queries and keys, GELU by tanh, MAE": {
        "objective": "mae",
        "form": {"norm_queries": True, "mlp": "gelu_tanh"},
    },
}
"""The settings of each kind; ``form`` is a ViT's."""
_PLAIN = next(iter(KINDS))


@dataclass(frozen=True)
class Case:
    """A model to check: its kind, tokens with a class token, features of a head, and the type of a step."""

    kind: str
    tokens: int
    head: int
    dtype: str = "float32"
    tokenizer: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.kind}; {self.tokens} tokens, heads of {self.head}, {self.dtype}"

    @property
    def is_swin(self) -> bool:
        """True for a Swin, whose tokens are those of its first stage."""
        return "encoder" in KINDS[self.kind]

    def make_config(self, **sections: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration of the model, with ``sections`` added to its own.

        Raises SkipError if it needs a tokenizer and there is none.
        """
        values = dict(KINDS[self.kind])
        form = values.pop("form", None)
        model = dict(values.pop("model", {}))
        model |= self._list_swin_sizes() if self.is_swin else {"width": _HEADS * self.head, "depth": 2, "heads": _HEADS}
        if values["objective"] in ("mae", "feature"):
            model |= _DECODER
        if form is not None:
            model |= {"form": form, "relative": False}
        if values["objective"] == "beit":
            if self.tokenizer is None:
                raise SkipError("the backend trains no tokenizer, which BEiT needs")
            model["tokenizer"] = self.tokenizer
        side = self._count_patches() * 8
        patch = 4 if self.is_swin else 8
        config: dict[str, Any] = {
            "encoder": "vit_tiny",
            "image_size": side,
            "patch_size": patch,
            "mask": {"blocks": 2, "unit": 8, "ratio": 0.6, "source": "online"},
            **values,
            "model": {**model, "drop_path": 0.0},
            "optim": {
                "batch_size": _IMAGES,
                "epochs": 1,
                "warmup_epochs": 0,
                "warmup_steps": None,
                "dtype": self.dtype,
                "clip_grad": None,
            },
        }
        if values["objective"] == "feature":
            config["optim"]["ema_decay"] = 0.9
        for name, section in sections.items():
            config[name] = {**config.get(name, {}), **section}
        return TrainConfig.model_validate(config)

    def _count_patches(self) -> int:
        """Return the output tokens along a side; those of a Swin are even, so that windows divide its maps."""
        side = GRIDS[self.tokens]
        return side + side % 2 if self.is_swin else side

    def _list_swin_sizes(self) -> dict[str, Any]:
        return {"width": self.head, "depth": [2, 2], "heads": [1, 2], "window": self._count_patches() // 2}


def list_cases(dtypes: tuple[str, ...], quick: bool, tokenizer: str | None) -> Iterator[Case]:
    """Yield the cases for a device that computes in ``dtypes``; ``tokenizer`` is a checkpoint for BEiT.

    In full each kind has all numbers of tokens and sizes of heads in float32.
    """
    for kind in KINDS:
        sizes = [(50, 64)]
        if not quick:
            sizes = [(tokens, head) for tokens in GRIDS for head in (32, 64)]
        elif kind == _PLAIN:
            sizes = [(50, 32), (65, 64), (197, 32), (197, 64)]
        for tokens, head in sizes:
            yield Case(kind, tokens, head, "float32", tokenizer)
        if quick and kind != _PLAIN:
            continue
        for dtype in dtypes:
            if dtype != "float32":
                yield Case(kind, 197, 64, dtype, tokenizer)


def create_learner(backend: Backend, config: TrainConfig) -> Learner:
    """Create a learner; raises SkipError with the backend's reason if it lacks such a model."""
    try:
        return backend.create_learner(config)
    except BackendError as error:
        raise SkipError(str(error)) from error


def load_weights(learner: Learner, weights: Arrays | None = None) -> Arrays:
    """Load drawn weights, or those that are given, into a fresh learner and its moving average; return them."""
    state = learner.state()
    if weights is None:
        weights = draw_weights(state.model)
    learner.load(LearnerState(dict(weights), join_average({}, weights)))
    return weights


def draw_weights(model: Arrays) -> Arrays:
    """Draw weights in place of those of ``model``; fixed positions, counters and lone factors stay as they are."""
    drawn: Arrays = {}
    for number, name in enumerate(sorted(model)):
        array = model[name]
        rng = np.random.default_rng([11, number])
        last = name.rpartition(".")[2]
        values = rng.normal(size=array.shape)
        if name == "decoder_pos_embed" or "running_" in name or array.size == 1:
            drawn[name] = array
            continue
        if last == "pos_embed":
            values *= 0.5
        elif "bias_table" in name or "token" in name:
            values *= 0.7
        elif array.ndim >= 2:
            # queries and keys twice as large, so that attention is far from uniform
            gain = 2.0 if "attn.qkv" in name or ("_proj." in name and "attn" in name) else 1.0
            values *= gain / math.sqrt(math.prod(array.shape[1:]))
        elif last == "weight" or "gamma" in last:
            values = rng.uniform(0.5, 1.5, array.shape)
        else:
            values *= 0.2
        drawn[name] = values.astype(array.dtype)
    return drawn


def describe_run(config: TrainConfig) -> dict[str, Any]:
    """Return the metadata of a checkpoint of a pretraining run."""
    return {
        "kind": "pretrain",
        "step": 0,
        "epoch": 0,
        "seed": config.run.seed,
        "config": config.model_dump(mode="json"),
    }


def draw_images(config: TrainConfig, count: int = _IMAGES, seed: int = 5) -> NDArray[np.uint8]:
    """Draw images (B, H, W, 3): a few rectangles in noise, so that patches resemble each other in part."""
    rng = np.random.default_rng(seed)
    height, width = config.image_size
    images = rng.normal(110, 25, (count, height, width, 3))
    for image in images:
        for _ in range(6):
            top = rng.integers(height * 3 // 4)
            left = rng.integers(width * 3 // 4)
            bottom = top + rng.integers(4, height // 2)
            right = left + rng.integers(4, width // 2)
            image[top:bottom, left:right] += rng.normal(0, 60, 3)
    return images.clip(0, 255).astype(np.uint8)


def draw_masks(config: TrainConfig, count: int = _IMAGES, seed: int = 7) -> NDArray[np.bool_]:
    """Draw random masks (B, U), equally many units hidden in each."""
    units = config.units[0] * config.units[1]
    order = np.random.default_rng(seed).random((count, units)).argsort(axis=1)
    return order < round(config.masks.ratio * units)
