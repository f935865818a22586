"""A trained model as plain arrays, ready to be rebuilt elsewhere: normalised images -> class logits or features.

Always the encoder of the whole image: a mask exists in pretraining only. No framework here.

Shapes: N = h * w patches, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ehm import checkpoint
from ehm.backends.base import Arrays
from ehm.config import ModelSource, Triple
from ehm.encoders import VitSpec
from ehm.errors import CheckpointError
from ehm.weights import (
    ReadFile,
    Weights,
    at_size,
    fit,
    is_bare_file,
    of_checkpoint,
    of_file,
    read_safetensors,
    resample_positions,
)

__all__ = ["Forward", "Head", "Pool", "Reference", "Trained", "numbered", "open_trained"]

Head = Literal["auto", "classifier", "features"]
Pool = Literal["avg", "token"]
Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A network: normalised images (B, 3, H, W) -> logits (B, C) or features (B, D)."""
Reference = tuple[Forward, str]
"""A framework's own computation of a network, and what computes it: ``torch 2.14.1, cpu, float32``."""


@dataclass(frozen=True)
class Trained:
    """A plain ViT and what a manifest says about it; ``labels`` is empty for features.

    ``arrays`` (float32) are all parameters of the network and nothing else, under timm's names: the encoder with its
    positions for ``spec``'s grid; ``norm.*`` over all tokens, or ``fc_norm.*`` behind the pooling; with labels
    ``head.weight`` (C, D) and ``head.bias``, or those of a linear probe: ``head.0.running_mean`` and ``running_var`` of
    a batch norm without affine (eps 1e-6), then ``head.1.weight`` and ``bias``. ``pool`` is the mean of the patch
    tokens or the class token. Norms have eps 1e-6.

    ``origin`` is the checkpoint's folder where a run was named, else the file; ``sha256`` is that of the weights' file.
    """

    arrays: Arrays
    spec: VitSpec
    pool: Pool
    labels: tuple[str, ...]
    mean: Triple
    std: Triple
    origin: str
    kind: str
    sha256: str

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.spec.image_size


def open_trained(source: ModelSource, head: Head = "auto", read_file: ReadFile = read_safetensors) -> Trained | None:
    """The model that ``source.init`` names: a run folder, a checkpoint, or a file of weights.

    None for a model of timm's, which only timm builds: ``timm:NAME``, and a checkpoint fine-tuned from one. ``head``
    auto takes the classifier where the weights have one. Raises CheckpointError where a classifier is asked for and
    there is none, where weights are missing or do not fit, and where a file's ViT has more than a plain one.
    """
    if source.init.startswith("timm:"):
        return None
    return _file(source, head, read_file) if is_bare_file(source) else _checkpoint(source, head)


def numbered(classes: int) -> tuple[str, ...]:
    """Labels for classes whose names nobody knows."""
    return tuple(str(number) for number in range(classes))


def _checkpoint(source: ModelSource, head: Head) -> Trained | None:
    init = Path(source.init)
    path = checkpoint.resolve(init.parent if init.is_file() else init)
    arrays, meta = checkpoint.read_model(path)
    weights = of_checkpoint(arrays, meta)
    if weights.timm is not None:
        return None
    kind, digest = meta["kind"], meta["sha256"]["model.safetensors"]
    pool: Pool = "avg"
    labels: tuple[str, ...] = ()
    if kind != "pretrain":
        pool = meta["config"]["pool"]
        labels = () if head == "features" else tuple(meta["classes"])
    elif head == "classifier":
        raise CheckpointError(f"{path}: a pretrained encoder has no classifier; ehm finetune gives it one")
    source = source.model_copy(update={"init": str(path)})
    return _assemble(weights, source, pool, labels, kind, digest)


def _file(source: ModelSource, head: Head, read_file: ReadFile) -> Trained:
    path = Path(source.init)
    arrays = read_file(path)
    classes = 0 if head == "features" or "head.weight" not in arrays else len(arrays["head.weight"])
    if head == "classifier" and not classes:
        raise CheckpointError(f"{path}: holds no classifier (head.weight); --head features exports the encoder")
    # MAE's fine-tuning leaves fc_norm behind the average; a plain ViT's classifier has the class token
    pool: Pool = "avg" if "fc_norm.weight" in arrays or not classes else "token"
    return _assemble(of_file(arrays, source), source, pool, numbered(classes), "file", checkpoint.sha256(path))


def _assemble(
    weights: Weights, source: ModelSource, pool: Pool, labels: tuple[str, ...], kind: str, sha256: str
) -> Trained:
    assert weights.spec is not None
    spec, origin = at_size(weights.spec, source), source.init
    positions = resample_positions(weights.arrays["pos_embed"], spec.grid, weights.spec.grid)
    arrays = {**weights.arrays, "pos_embed": positions}
    shapes = _encoder(spec, "fc_norm" if "fc_norm.weight" in arrays else "norm")
    foreign = [name for name in arrays if name.startswith(_PLAIN) and name not in shapes]
    if foreign:
        raise CheckpointError(
            f"{origin}: {foreign[0]} is no part of a plain ViT, and would be missing; "
            "of such models only timm:NAME and what is fine-tuned from it can be exported"
        )
    if labels:
        shapes |= _classifier(len(labels), spec.width, probe="head.1.weight" in arrays)
    return Trained(fit(shapes, arrays, origin), spec, pool, labels, weights.mean, weights.std, origin, kind, sha256)


def _encoder(spec: VitSpec, norm: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a plain ViT's parameters, as timm gives them."""
    width, hidden = spec.width, round(spec.width * spec.mlp_ratio)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + spec.patches, width),
        "patch_embed.proj.weight": (width, 3, spec.patch_size, spec.patch_size),
        "patch_embed.proj.bias": (width,),
    }
    for index in range(spec.depth):
        for name, shape in (
            ("norm1", (width,)),
            ("attn.qkv", (3 * width, width)),
            ("attn.proj", (width, width)),
            ("norm2", (width,)),
            ("mlp.fc1", (hidden, width)),
            ("mlp.fc2", (width, hidden)),
        ):
            shapes[f"blocks.{index}.{name}.weight"] = shape
            shapes[f"blocks.{index}.{name}.bias"] = shape[:1]
    return {**shapes, f"{norm}.weight": (width,), f"{norm}.bias": (width,)}


def _classifier(classes: int, width: int, probe: bool) -> dict[str, tuple[int, ...]]:
    linear = "head.1" if probe else "head"
    shapes: dict[str, tuple[int, ...]] = {f"{linear}.weight": (classes, width), f"{linear}.bias": (classes,)}
    return {"head.0.running_mean": (width,), "head.0.running_var": (width,), **shapes} if probe else shapes


_PLAIN = ("blocks.", "patch_embed.", "norm_pre.", "reg_token", "attn_pool.")
"""Beginnings of names that belong to the encoder in timm: leaving one out would change its results."""
