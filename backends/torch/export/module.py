"""Trained models as torch modules, for export: normalised (B, 3, H, W) -> logits (B, C), or features (B, D).

Our own plain ViTs are built from their arrays, to compare with; all others are loaded as timm's classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ehm.backends.torch.engine.tensors import load_arrays, to_arrays
from ehm.backends.torch.export.heads import Heads, Scores
from ehm.backends.torch.learners.classifier import probe_head
from ehm.backends.torch.models.embedding import Embedding
from ehm.backends.torch.models.loading import Loaded, classifier_name, load_model, read_arrays
from ehm.backends.torch.models.pyramid import STRIDES, load_pyramid, thirds
from ehm.backends.torch.models.upernet import UperNet
from ehm.backends.torch.models.vit import build_vit
from ehm.config import ModelSource, SegmentationConfig
from ehm.config.inputs import InputSpec
from ehm.errors import CheckpointError, ConfigError
from ehm.models.trained import Found, Head, Output, Reference, Task, Trained, find, is_segmenter, numbered, outputs_of
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import open_checkpoint

__all__ = ["Module", "build", "compute", "load_module", "reference"]


@dataclass(frozen=True)
class Module:
    """A module in evaluation mode on the CPU, and what a manifest says about it.

    ``labels`` is empty where ``head`` gives no logits. ``origin`` is the checkpoint's folder where a run was named,
    else what was named. ``sha256`` is that of the file of weights; for a model by name, of its tensors in the
    safetensors format.
    """

    module: nn.Module
    labels: tuple[str, ...]
    image_size: tuple[int, int]
    inputs: InputSpec
    origin: str
    kind: str
    sha256: str
    head: Head = "auto"
    notes: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the network gives, in order."""
        return Scores.outputs if self.task == "segmentation" else outputs_of(self.head, bool(self.labels))

    @property
    def task(self) -> Task:
        """What it is for."""
        if isinstance(self.module, UperNet):
            return "segmentation"
        return "classification" if self.labels else "features"

    def network(self) -> Heads | Scores:
        """It, with a tuple of ``outputs``."""
        if isinstance(self.module, UperNet):
            return Scores(self.module, self.image_size)
        return Heads(self.module, self.outputs)


def reference(trained: Trained) -> Reference:
    """What torch computes for ``trained``."""
    return compute(Heads(build(trained), trained.outputs))


def compute(heads: Heads | Scores) -> Reference:
    """``heads`` as a function of arrays."""

    @torch.inference_mode()
    def forward(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        values = heads(torch.from_numpy(images))
        return {name: value.numpy() for name, value in zip(heads.outputs, values, strict=True)}

    heads.eval()
    return forward, f"torch {torch.__version__}, cpu, float32"


def build(trained: Trained) -> nn.Module:
    """timm's own class with the arrays of ``trained``."""
    arrays = trained.arrays
    model: Any = build_vit(trained.spec, len(trained.labels), 0.0, trained.pool, "fc_norm.weight" in arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if "head.0.running_mean" in arrays:
        probe_head(model)
        tensors["head.0.num_batches_tracked"] = torch.tensor(0)  # counts batches in training, and nothing else
    model.load_state_dict(tensors)
    module: nn.Module = model.eval().requires_grad_(False)
    return module


def load_module(source: ModelSource, head: Head = "auto") -> Module:
    """A model that only timm's classes build: ``timm:NAME``, or a run, a checkpoint or a file of weights.

    ``head`` auto takes the classifier where there is one. Raises CheckpointError where a classifier is asked for and
    there is none, and as ``load_model`` does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # an untrained model is the same every time
        if source.init.startswith("timm:"):
            return _by_name(source, head)
        if head in ("auto", "classifier") and is_segmenter(source):
            return _segmenter(source, head)
        return _found(source, head)


def _found(source: ModelSource, head: Head) -> Module:
    found = find(source, head, read_arrays)
    source = source.model_copy(update={"init": found.origin})
    if found.kind == "embedder":
        return _embedder(source, found, head)
    loaded = load_model(source, len(found.labels), found.pool, fc_norm=False)
    if found.labels:
        prefix = f"{classifier_name(loaded.model)}."
        own = {name.removeprefix(prefix): a for name, a in found.weights.arrays.items() if name.startswith(prefix)}
        if "0.running_mean" in own:
            probe_head(loaded.model)
        _fill_head(loaded.model, prefix[:-1], own)
    described = _describe(loaded, found.labels, found.origin, found.kind, found.sha256, head)
    return replace(described, notes=found.weights.notes)


def _segmenter(source: ModelSource, head: Head) -> Module:
    """A segmenter's checkpoint, for images of ``source.image_size`` or else of those that it was trained on."""
    opened = open_checkpoint(source.init)
    folder = opened.folder
    meta = opened.metadata
    if head == "classifier":
        raise CheckpointError(f"{folder}: a segmenter has no classifier of images; --head auto exports its scores")
    config = SegmentationConfig.model_validate(meta["config"])
    height, width = source.image_size or config.crop_size
    if height % STRIDES[-1] or width % STRIDES[-1]:
        raise ConfigError(f"model.image_size {[height, width]}: a segmenter's is a multiple of {STRIDES[-1]}")
    model = config.model.model_copy(update={"init": str(folder), "drop_path": 0.0})
    pyramid, loaded = load_pyramid(model, (height, width), config.head.taps or thirds)
    network = UperNet(pyramid, len(meta["classes"]), config.head)
    # the encoder's are there already, in the sizes that it has here
    rest = {name: torch.from_numpy(array) for name, array in opened.model.items() if ".encoder." not in name}
    network.load_state_dict({**network.state_dict(), **rest})
    return Module(
        network.eval().requires_grad_(False),
        tuple(meta["classes"]),
        (height, width),
        loaded.inputs,
        str(folder),
        meta["kind"],
        meta["sha256"]["model.safetensors"],
        head,
    )


def _embedder(source: ModelSource, found: Found, head: Head) -> Module:
    """The descriptor of one scale, without ArcFace's weights."""
    opened = open_checkpoint(found.origin)
    loaded = load_model(source, fc_norm=False)
    model = Embedding(loaded.model, opened.metadata["config"]["dim"])
    own = {name: array for name, array in opened.model.items() if not name.startswith(("arcface.", "encoder."))}
    load_arrays(model, own | {f"encoder.{name}": array for name, array in to_arrays(loaded.model).items()})
    described = replace(loaded, model=model, inputs=found.weights.inputs)
    return _describe(described, (), found.origin, found.kind, found.sha256, head)


def _by_name(source: ModelSource, head: Head) -> Module:
    name = source.init.removeprefix("timm:").partition("?")[0]
    facts = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    classes = 0 if head in ("features", "patches") or facts is None else facts.num_classes
    if head == "classifier" and facts is not None and not classes:
        raise CheckpointError(f"{source.init}: timm gives it no classifier; --head features exports the encoder")
    loaded = load_model(source, classes)
    subset = infer_imagenet_subset(loaded.model) if classes else None
    labels = tuple(ImageNetInfo(subset).label_descriptions()) if subset else numbered(classes)
    tensors = {key: value.contiguous() for key, value in loaded.model.state_dict().items()}
    return _describe(loaded, labels, source.init, "timm", hashlib.sha256(save(tensors)).hexdigest(), head)


def _fill_head(model: nn.Module, name: str, arrays: Arrays) -> None:
    """``load_model`` leaves the classifier fresh; here it belongs to the weights."""
    try:
        model.get_submodule(name).load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    except RuntimeError as error:
        raise CheckpointError(f"the classifier does not fit: {' '.join(str(error).split())}") from None


def _describe(loaded: Loaded, labels: tuple[str, ...], origin: str, kind: str, sha256: str, head: Head) -> Module:
    module = loaded.model.eval().requires_grad_(False)
    return Module(module, labels, loaded.image_size, loaded.inputs, origin, kind, sha256, head)
