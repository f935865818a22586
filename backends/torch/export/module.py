"""Trained models as torch modules, for export: normalised (B, 3, H, W) -> logits (B, C), or features (B, D).

ViTs can also be built from their assembled arrays, to compare with; all other models are loaded as timm's classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.tensors import load_arrays, to_arrays
from ehm.backends.torch.export.heads import Eyes, Heads, Scores
from ehm.backends.torch.learners.classification import add_probe_head
from ehm.backends.torch.models.embedding import Embedding, load_encoder
from ehm.backends.torch.models.loading import find_classifier_name, load_model
from ehm.backends.torch.models.pyramid import load_pyramid
from ehm.backends.torch.models.resampler import VisualTokens
from ehm.backends.torch.models.torch_file import read_arrays
from ehm.backends.torch.models.upernet import UperNet
from ehm.backends.torch.models.vit import build_vit
from ehm.config import ModelSource, RetrievalConfig, SegmentationConfig, VisionLanguageConfig
from ehm.config.encoders import VitSpec
from ehm.errors import CheckpointError
from ehm.models.assembling import find_window
from ehm.models.heads import Head, Output, Reference, list_outputs, select_labels
from ehm.models.opening import open_model
from ehm.models.pyramid import list_ends_of_thirds
from ehm.models.weights import LoadedModel, Provenance, Weights, number_labels
from ehm.storage.arrays import Arrays, add_prefix, take_prefix

__all__ = ["build_reference", "build_trained_vit", "compute_with_torch", "load_module", "make_network"]


def build_reference(weights: Weights, outputs: Sequence[Output], image_size: tuple[int, int]) -> Reference:
    """Return torch's computation of a ViT that :func:`ehm.models.assembling.assemble_network` gave."""
    return compute_with_torch(Heads(build_trained_vit(weights), outputs))


def compute_with_torch(network: Eyes | Heads | Scores) -> Reference:
    """Return ``network`` as a function of arrays."""

    @torch.inference_mode()
    def forward(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        values = network(torch.from_numpy(images))
        return {name: value.numpy() for name, value in zip(network.outputs, values, strict=True)}

    network.eval()
    return forward, f"torch {torch.__version__}, cpu, float32"


def build_trained_vit(weights: Weights) -> nn.Module:
    """Build timm's own class with all arrays of ``weights``, a ViT."""
    assert isinstance(weights.spec, VitSpec)
    provenance = weights.provenance
    tensors = _to_tensors(weights.arrays)
    model: Any = build_vit(weights.spec, len(provenance.labels), 0.0, provenance.pool, "fc_norm.weight" in tensors)
    if "head.0.running_mean" in tensors:  # a linear probe
        add_probe_head(model)
        tensors["head.0.num_batches_tracked"] = torch.tensor(0)  # counts batches in training, and nothing else
    model.load_state_dict(tensors)
    return _freeze(model)


def load_module(source: ModelSource, head: Head = "auto", weights: Weights | None = None) -> LoadedModel:
    """Load a model as timm's classes build it: ``timm:NAME``, or a run, a checkpoint or a file of weights.

    ``head`` auto takes a classifier if there is one; the ``labels`` of the result's provenance are those of its logits.
    ``weights`` are what ``source`` names if that was opened already. Raises CheckpointError if a classifier is asked
    for and there is none, and as ``load_model`` does.
    """
    with seed_weights():  # an untrained model is the same every time
        if source.init.startswith("timm:"):
            return _load_from_timm(source, head)
        if weights is None:
            weights = open_model(source, read_arrays)
        # the checkpoint's folder, which errors then name, and not a run's, which has several
        source = source.model_copy(update={"init": weights.provenance.origin})
        labels = select_labels(weights.provenance, head)
        if weights.provenance.kind == "segmenter" and head == "auto":
            return _load_segmenter(source, weights)
        if weights.provenance.kind == "answerer" and head == "auto":
            return _load_visual_tokens(source, weights)
        if weights.provenance.kind == "embedder":
            return _load_embedder(source, weights)
        return _load_encoder(source, weights, labels)


def make_network(loaded: LoadedModel, head: Head) -> Eyes | Heads | Scores:
    """Return the model of :func:`load_module` as a module that gives a tuple of its ``outputs``."""
    if isinstance(loaded.model, VisualTokens):
        return Eyes(loaded.model)
    if isinstance(loaded.model, UperNet):
        return Scores(loaded.model, loaded.image_size)
    return Heads(loaded.model, list_outputs(head, bool(loaded.provenance.labels)))


def _load_encoder(source: ModelSource, weights: Weights, labels: tuple[str, ...]) -> LoadedModel:
    """Load an encoder with its own classifier of ``labels``, if there are any."""
    # without a norm behind the pooling, unless the weights have one: there is no training to begin it for
    loaded = load_model(source, len(labels), weights.provenance.pool, fc_norm=False, weights=weights)
    if labels:
        # `load_model` leaves the classifier fresh; here it belongs to the weights
        name = find_classifier_name(loaded.model)
        own = take_prefix(weights.arrays, f"{name}.")
        if "0.running_mean" in own:
            add_probe_head(loaded.model)
        _fill_classifier(loaded.model, name, own)
    _freeze(loaded.model)
    return replace(loaded, provenance=replace(weights.provenance, labels=labels))


def _load_segmenter(source: ModelSource, weights: Weights) -> LoadedModel:
    """Load a segmenter for images of ``source.image_size``, or else of those that it was trained on."""
    assert weights.checkpoint is not None
    metadata = weights.checkpoint.metadata
    config = SegmentationConfig.model_validate(metadata["config"])
    height, width = find_window(weights, source)
    encoder = config.model.model_copy(update={"init": source.init, "drop_path": 0.0})
    pyramid, loaded = load_pyramid(encoder, (height, width), config.head.taps or list_ends_of_thirds, weights)
    labels = tuple(metadata["classes"])
    network = UperNet(pyramid, len(labels), config.head)
    state = network.state_dict()
    for name, array in weights.checkpoint.model.items():
        if ".encoder." not in name:  # its arrays are there already, in the sizes that it has here
            state[name] = torch.from_numpy(array)
    network.load_state_dict(state)
    architecture = {**loaded.architecture, "image_size": [height, width]}
    return LoadedModel(_freeze(network), architecture, replace(weights.provenance, labels=labels))


def _load_embedder(source: ModelSource, weights: Weights) -> LoadedModel:
    """Load the descriptor of one scale, without ArcFace's weights."""
    assert weights.checkpoint is not None
    config = RetrievalConfig.model_validate(weights.checkpoint.metadata["config"])
    loaded = load_encoder(source, config.pool, weights)
    model = Embedding(loaded.model, config.dim, gem=config.pool == "gem")
    # the encoder's as they were resampled to the image size, the others as they were trained
    arrays = add_prefix(to_arrays(loaded.model), "encoder.")
    for name, array in weights.checkpoint.model.items():
        if not name.startswith(("arcface.", "encoder.")):
            arrays[name] = array
    load_arrays(model, arrays)
    return replace(loaded, model=_freeze(model))


def _load_visual_tokens(source: ModelSource, weights: Weights) -> LoadedModel:
    """Load an encoder with the resampler above it, without the language model that it was trained for."""
    assert weights.checkpoint is not None
    metadata = weights.checkpoint.metadata
    config = VisionLanguageConfig.model_validate(metadata["config"])
    loaded = load_model(source, fc_norm=False, weights=weights)
    model = VisualTokens(loaded.model, config.resampler, metadata["language"]["width"])
    # the encoder's as they were resampled to the image size, the resampler's as they were trained
    arrays = add_prefix(to_arrays(loaded.model), "encoder.")
    for name, array in weights.checkpoint.model.items():
        if name.startswith("resampler."):
            arrays[name] = array
    load_arrays(model, arrays)
    return replace(loaded, model=_freeze(model))


def _load_from_timm(source: ModelSource, head: Head) -> LoadedModel:
    """Load a network of timm's, with the classifier that it was published with if ``head`` takes one."""
    name = source.init.removeprefix("timm:").partition("?")[0]
    labels: tuple[str, ...] = ()
    # any name that timm does not know is refused below, with the names that are near
    if timm.is_model(name.partition(".")[0]) and (published := timm.get_pretrained_cfg(name)):
        known = number_labels(published.num_classes)
        labels = select_labels(Provenance(source.init, "timm", labels=known), head)
    loaded = load_model(source, len(labels))
    if labels and (subset := infer_imagenet_subset(loaded.model)):  # timm names no other classes than ImageNet's
        labels = tuple(ImageNetInfo(subset).label_descriptions())
    # there may be no file to hash: an untrained network is exported too
    tensors = {key: value.contiguous() for key, value in loaded.model.state_dict().items()}
    digest = hashlib.sha256(save(tensors)).hexdigest()
    _freeze(loaded.model)
    return replace(loaded, provenance=replace(loaded.provenance, sha256=digest, labels=labels))


def _fill_classifier(model: nn.Module, name: str, arrays: Arrays) -> None:
    try:
        model.get_submodule(name).load_state_dict(_to_tensors(arrays))
    except RuntimeError as error:
        raise CheckpointError(f"the classifier does not fit: {' '.join(str(error).split())}") from None


def _to_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _freeze(model: nn.Module) -> nn.Module:
    """Put ``model`` into evaluation mode without gradients, and return it."""
    return model.eval().requires_grad_(False)
