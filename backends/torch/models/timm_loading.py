"""Load a network of timm's by its name, with its published weights or without."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save

from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.models.timm_vit import read_timm_spec
from ehm.config import ModelSource
from ehm.config.inputs import InputSpec
from ehm.config.sections import ChannelRule
from ehm.errors import CheckpointError, ConfigError, take_first_line
from ehm.models.channels import adapt_kernel, describe_adaptation
from ehm.models.hub import go_offline_if_unreachable
from ehm.models.timm_repository import TIMM
from ehm.models.weights import LoadedModel, Provenance, Weights

__all__ = ["create_timm_model", "describe_timm_model", "load_timm_model", "open_timm_weights"]

_TOLD = ("fixed_input_size", "first_conv", "classifier")
"""Keys of timm's ``pretrained_cfg`` that describe a network, and not how it was trained."""


def open_timm_weights(source: ModelSource) -> Weights:
    """Open the encoder of a network of timm's; one that is none of ours has neither spec nor arrays."""
    # at its own image size, so that the arrays are those that were published; whoever takes them resamples them
    published = source.model_copy(update={"image_size": None})
    with seed_weights():  # an untrained network is the same every time
        loaded = load_timm_model(published, 0)
    found = read_timm_spec(loaded.model, source.init)
    provenance = replace(loaded.provenance, notes=loaded.notes)
    if found is None:
        return Weights({}, provenance, timm=loaded.architecture["name"])
    spec, arrays = found
    digest = hashlib.sha256(save(dict(arrays))).hexdigest()
    return Weights(arrays, replace(provenance, sha256=digest), spec)


def load_timm_model(source: ModelSource, classes: int, channels: int | None = None) -> LoadedModel:
    """Load a model of timm's by name, with its published weights unless ``?pretrained=false`` follows the name.

    Its first convolution is adapted to ``channels``, if they are given.
    """
    name, _, option = source.init.removeprefix(TIMM).partition("?")
    if option not in ("", "pretrained=true", "pretrained=false"):
        raise ConfigError(f"model.init {source.init}: after ? only pretrained=false is known")
    if not timm.is_model(name.partition(".")[0]):
        close = ", ".join(difflib.get_close_matches(name, timm.list_models(), 3)) or "timm.list_models() names them"
        raise ConfigError(f"model.init {source.init}: timm {timm.__version__} has no such model; near it: {close}")
    pretrained = option != "pretrained=false"
    with go_offline_if_unreachable() if pretrained else nullcontext():
        model = create_timm_model(name, pretrained, source, classes, None)
    published = model.pretrained_cfg
    notes: tuple[str, ...] = ()
    own = published["input_size"][0]
    if channels is not None and channels != own:
        adapted = create_timm_model(name, False, source, classes, None, channels)
        _copy_adapted(model, adapted, published["first_conv"], channels, source.adapt_channels)
        model = adapted
        notes = (describe_adaptation(own, channels, source.adapt_channels),)
    size = source.image_size or published["input_size"][1:]
    architecture = describe_timm_model(model, name, size)
    weights = "with its published weights" if pretrained else "untrained"
    try:
        inputs = InputSpec.from_pretrained_cfg(published)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.init {source.init}: timm's pretrained_cfg of it: {error}") from None
    return LoadedModel(
        model, architecture, Provenance(source.init, "timm", inputs=inputs), (f"{name} of timm, {weights}", *notes)
    )


def describe_timm_model(model: Any, name: str, size: Sequence[int]) -> dict[str, Any]:
    """Return what checkpoints say of a network of timm's: its name, and what timm tells of it beside its weights."""
    published = {key: model.pretrained_cfg[key] for key in _TOLD if key in model.pretrained_cfg}
    return {"family": "timm", "name": name, "image_size": list(size), "pretrained_cfg": published}


def create_timm_model(
    name: str,
    pretrained: bool,
    source: ModelSource,
    classes: int,
    image_size: tuple[int, int] | None,
    channels: int | None = None,
) -> Any:
    """Create a model of timm's for images of ``source.image_size``, else of ``image_size``, else of its own size.

    They have ``channels``, if that is given, else as many as it was published for.
    """
    size = source.image_size or image_size
    options: dict[str, Any] = {"num_classes": classes, "drop_path_rate": source.drop_path or None, "img_size": size}
    if channels is not None:
        options["in_chans"] = channels
    try:
        try:
            return timm.create_model(name, pretrained=pretrained, **options)
        except TypeError:  # convolutional networks take images of any size, and no img_size
            return timm.create_model(name, pretrained=pretrained, **{**options, "img_size": None})
    except (OSError, RuntimeError, TypeError) as error:
        if isinstance(error, LocalEntryNotFoundError):  # its own words fill a paragraph
            reason = "its weights are not here, and the hub does not answer"
        else:
            reason = take_first_line(error)
        raise CheckpointError(
            f"model.init {source.init}: timm cannot make it: {reason} "
            f"(timm:{name}?pretrained=false needs no download, and starts untrained)"
        ) from None


def _copy_adapted(model: Any, adapted: Any, first: str | Sequence[str], channels: int, rule: ChannelRule) -> None:
    """Copy the weights of ``model`` into ``adapted``, with its ``first`` convolutions adapted to ``channels``."""
    names = [f"{name}.weight" for name in ([first] if isinstance(first, str) else first)]
    state = model.state_dict()
    for name in names:
        state[name] = torch.from_numpy(adapt_kernel(state[name].numpy(), channels, rule))
    adapted.load_state_dict(state)
