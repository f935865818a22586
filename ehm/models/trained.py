"""A trained model as plain arrays, ready to be rebuilt elsewhere: normalised images -> class logits, features, patches.

Always the encoder of the whole image: a mask exists in pretraining only. No framework here.

Shapes: B images, N = h * w patches, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ehm.config import ModelSource
from ehm.config.encoders import SwinSpec, VitSpec
from ehm.config.inputs import InputSpec
from ehm.errors import CheckpointError
from ehm.models.shapes import at_size
from ehm.models.weights import ReadFile, Weights, fit, fitted, is_bare_file, of_checkpoint, of_file, read_safetensors
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import find_checkpoint, open_checkpoint
from ehm.storage.reading import hash_file

__all__ = [
    "Forward",
    "Found",
    "Head",
    "Output",
    "Pool",
    "Reference",
    "Task",
    "Trained",
    "find",
    "is_segmenter",
    "numbered",
    "open_trained",
    "outputs_of",
]

Head = Literal["auto", "classifier", "features", "patches", "multi"]
Output = Literal["logits", "features", "patches", "scores"]
Task = Literal["classification", "features", "segmentation"]
Pool = Literal["avg", "token"]
Forward = Callable[[NDArray[np.float32]], dict[str, NDArray[np.float32]]]
"""A network: normalised images (B, 3, H, W) -> its outputs by name.

They are any of ``logits`` (B, C); ``features`` (B, D), what the classifier sees, or a descriptor; and ``patches``
(B, D, h, w), every patch token behind the last norm. A segmenter gives ``scores`` (B, C, H, W), the logits of each
pixel, and no other.
"""
Reference = tuple[Forward, str]
"""A framework's own computation of a network, and what computes it: ``torch 2.14.1, cpu, float32``."""


@dataclass(frozen=True)
class Found:
    """Weights and what a manifest says about them; ``labels`` is empty for features.

    ``pool`` is what a classifier sees, and the features are: the mean of the patch tokens or the class token.
    ``origin`` is the checkpoint's folder where a run was named, else the file; ``sha256`` is that of the weights' file.
    """

    weights: Weights
    pool: Pool
    labels: tuple[str, ...]
    origin: str
    kind: str
    sha256: str


@dataclass(frozen=True)
class Trained:
    """A plain ViT and what a manifest says about it; ``labels`` is empty where ``head`` gives no logits.

    ``arrays`` (float32) are all parameters of the network and nothing else, under timm's names: the encoder with its
    positions for ``spec``'s grid; ``norm.*`` over all tokens, or ``fc_norm.*`` behind the pooling; with labels
    ``head.weight`` (C, D) and ``head.bias``, or those of a linear probe: ``head.0.running_mean`` and ``running_var`` of
    a batch norm without affine (eps 1e-6), then ``head.1.weight`` and ``bias``. ``pool`` is the mean of the patch
    tokens or the class token. Norms have eps 1e-6. ``inputs`` is how images are prepared; ``notes`` say what was
    assumed because a file does not tell it.

    ``origin`` is the checkpoint's folder where a run was named, else the file; ``sha256`` is that of the weights' file.
    """

    arrays: Arrays
    spec: VitSpec
    pool: Pool
    labels: tuple[str, ...]
    inputs: InputSpec
    origin: str
    kind: str
    sha256: str
    head: Head = "auto"
    notes: tuple[str, ...] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.spec.image_size

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the network gives, in order."""
        return outputs_of(self.head, bool(self.labels))

    @property
    def task(self) -> Task:
        """What it is for."""
        return "classification" if self.labels else "features"


def open_trained(source: ModelSource, head: Head = "auto", read_file: ReadFile = read_safetensors) -> Trained | None:
    """The model that ``source.init`` names: a run folder, a checkpoint, or a file of weights.

    None for what only timm's classes build: a Swin, a ViT in the relative form, ``timm:NAME``, a checkpoint that was
    fine-tuned from one; and for a descriptor or a segmenter. Raises CheckpointError as :func:`find` does, where weights
    are missing or do not fit, and where a file's ViT has more than a plain one.
    """
    if source.init.startswith("timm:") or (head in ("auto", "classifier") and is_segmenter(source)):
        return None
    found = find(source, head, read_file)
    spec = found.weights.spec
    if not isinstance(spec, VitSpec) or spec.relative or found.kind == "embedder":
        return None
    moved = at_size(spec, source)
    assert isinstance(moved, VitSpec)
    return _assemble(found, moved, head)


def is_segmenter(source: ModelSource) -> bool:
    """Whether a segmenter's run or checkpoint is named."""
    found = find_checkpoint(source.init)
    return found is not None and found.kind == "segmenter"


def find(source: ModelSource, head: Head, read_file: ReadFile) -> Found:
    """The weights of a run, a checkpoint or a file, and their classifier.

    ``head`` auto and multi take the classifier where the weights have one. Raises CheckpointError where a classifier
    is asked for and there is none, and as :func:`ehm.models.weights.read_weights` does.
    """
    return _file(source, head, read_file) if is_bare_file(source) else _checkpoint(source, head)


def outputs_of(head: Head, classifier: bool) -> tuple[Output, ...]:
    """What ``head`` means for weights that have a ``classifier``, or none; multi is everything that they can give."""
    if head == "multi":
        return ("logits", "features", "patches") if classifier else ("features", "patches")
    if head == "patches":
        return ("patches",)
    return ("logits",) if classifier else ("features",)


def numbered(classes: int) -> tuple[str, ...]:
    """Labels for classes whose names nobody knows."""
    return tuple(str(number) for number in range(classes))


def _checkpoint(source: ModelSource, head: Head) -> Found:
    opened = open_checkpoint(source.init)
    path = opened.folder
    meta = opened.metadata
    kind = opened.kind
    pool: Pool = "avg"
    labels: tuple[str, ...] = ()
    if kind == "detector" and head not in _HEADLESS:
        raise CheckpointError(f"{path}: a detector has no classifier of images; --head auto exports it whole")
    if kind == "classifier":
        pool = meta["config"]["pool"]
        labels = () if head in _HEADLESS else tuple(meta["classes"])
    elif head == "classifier":
        what = "a pretrained encoder" if kind == "pretrain" else f"an {kind}"
        raise CheckpointError(f"{path}: {what} has no classifier; ehm finetune gives it one")
    return Found(of_checkpoint(opened.model, meta, str(path)), pool, labels, str(path), kind, opened.model_sha256)


def _file(source: ModelSource, head: Head, read_file: ReadFile) -> Found:
    path = Path(source.init)
    weights = of_file(source, read_file)
    swin = isinstance(weights.spec, SwinSpec)
    classifier = weights.arrays.get("head.fc.weight" if swin else "head.weight")
    labels = () if head in _HEADLESS or classifier is None else numbered(len(classifier))
    if head == "classifier" and not labels:
        raise CheckpointError(f"{path}: holds no classifier (head.weight); --head features exports the encoder")
    # MAE's fine-tuning leaves fc_norm behind the average; a plain ViT's classifier has the class token
    pool: Pool = "avg" if swin or "fc_norm.weight" in weights.arrays or classifier is None else "token"
    return Found(weights, pool, labels, str(path), "file", hash_file(path))


def _assemble(found: Found, spec: VitSpec, head: Head) -> Trained:
    origin, weights, labels = found.origin, found.weights, found.labels
    arrays = fitted(weights, spec)
    shapes = _encoder(spec, "fc_norm" if "fc_norm.weight" in arrays else "norm")
    if labels:
        shapes |= _classifier(len(labels), spec.width, probe="head.1.weight" in arrays)
    arrays = fit(shapes, arrays, origin)
    return Trained(
        arrays, spec, found.pool, labels, weights.inputs, origin, found.kind, found.sha256, head, weights.notes
    )


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


_HEADLESS = ("features", "patches")
"""Heads that leave a classifier out."""
