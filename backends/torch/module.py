"""A trained model as one torch module, for export: normalised (B, 3, H, W) -> logits (B, C) or features (B, D).

Always the encoder of the whole image: a mask exists in pretraining only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import save
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from ehm import checkpoint
from ehm.backends.torch.classifier import probe_head
from ehm.backends.torch.weights import Loaded, classifier_name, load_model, read_tensors
from ehm.config import ModelSource, Triple
from ehm.errors import CheckpointError

__all__ = ["Head", "Module", "load_module"]

Head = Literal["auto", "classifier", "features"]


@dataclass(frozen=True)
class Module:
    """A module in evaluation mode on the CPU, and what a manifest says about it; ``labels`` is empty for features.

    ``origin`` is the checkpoint's folder where a run was named, else what was named.
    ``sha256`` is that of the file of weights; for a model of timm's, of its tensors in the safetensors format.
    """

    module: nn.Module
    labels: tuple[str, ...]
    image_size: tuple[int, int]
    mean: Triple
    std: Triple
    origin: str
    kind: str
    sha256: str


def load_module(source: ModelSource, head: Head = "auto") -> Module:
    """The trained model that ``source.init`` names: a run folder or checkpoint, a file of weights, or ``timm:NAME``.

    ``head`` auto takes the classifier where the weights have one. Raises CheckpointError where a classifier is asked
    for and there is none, and as ``load_model`` does.
    """
    init = source.init
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # an untrained model is the same every time
        if init.startswith("timm:"):
            return _timm(source, head)
        if Path(init).is_file() and not (Path(init).parent / "state.json").is_file():
            return _file(source, head)
        return _checkpoint(source, head)


def _checkpoint(source: ModelSource, head: Head) -> Module:
    path = checkpoint.resolve(Path(source.init).parent if Path(source.init).is_file() else source.init)
    source = source.model_copy(update={"init": str(path)})
    arrays, meta = checkpoint.read_model(path)
    kind, digest = meta["kind"], meta["sha256"]["model.safetensors"]
    if kind == "pretrain":
        if head == "classifier":
            raise CheckpointError(f"{path}: a pretrained encoder has no classifier; ehm finetune gives it one")
        return _describe(load_model(source, pool="avg", fc_norm=False), (), str(path), kind, digest)
    config = meta["config"]
    labels = () if head == "features" else tuple(meta["classes"])
    loaded = load_model(source, len(labels), config["pool"], fc_norm=False if config["frozen"] else None)
    if labels:
        if config["frozen"]:
            probe_head(loaded.model)
        _fill_head(loaded.model, {name: torch.from_numpy(array) for name, array in arrays.items()})
    return _describe(loaded, labels, str(path), kind, digest)


def _file(source: ModelSource, head: Head) -> Module:
    path = Path(source.init)
    tensors = read_tensors(path)
    classes = 0 if head == "features" or "head.weight" not in tensors else len(tensors["head.weight"])
    if head == "classifier" and not classes:
        raise CheckpointError(f"{path}: holds no classifier (head.weight); --head features exports the encoder")
    averaged = (
        "fc_norm.weight" in tensors
    )  # as MAE's fine-tuning leaves it; a plain ViT's classifier has the class token
    loaded = load_model(source, classes, "avg" if averaged or not classes else "token", fc_norm=averaged)
    if classes:
        _fill_head(loaded.model, tensors)
    return _describe(loaded, _numbered(classes), str(path), "file", checkpoint.sha256(path))


def _timm(source: ModelSource, head: Head) -> Module:
    name = source.init.removeprefix("timm:").partition("?")[0]
    facts = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    classes = 0 if head == "features" or facts is None else facts.num_classes
    if head == "classifier" and facts is not None and not classes:
        raise CheckpointError(f"{source.init}: timm gives it no classifier; --head features exports the encoder")
    loaded = load_model(source, classes)
    subset = infer_imagenet_subset(loaded.model) if classes else None
    labels = tuple(ImageNetInfo(subset).label_descriptions()) if subset else _numbered(classes)
    tensors = {key: value.contiguous() for key, value in loaded.model.state_dict().items()}
    return _describe(loaded, labels, source.init, "timm", hashlib.sha256(save(tensors)).hexdigest())


def _fill_head(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """``load_model`` leaves the classifier fresh; here it belongs to the weights."""
    prefix = f"{classifier_name(model)}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        model.get_submodule(prefix[:-1]).load_state_dict(own)
    except RuntimeError as error:
        raise CheckpointError(f"the classifier does not fit: {' '.join(str(error).split())}") from None


def _describe(loaded: Loaded, labels: tuple[str, ...], origin: str, kind: str, sha256: str) -> Module:
    module = loaded.model.eval().requires_grad_(False)
    return Module(module, labels, loaded.image_size, loaded.mean, loaded.std, origin, kind, sha256)


def _numbered(classes: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(classes))
