"""Load a downstream task's encoder: from our runs, published files or timm, or without any weights.

:mod:`ehm.models.weights` says which arrays an encoder takes; here are torch's own files, timm's models and the copying.
A head or a decoder of a file is left aside and said in ``Loaded.notes``; anything else that the encoder has and the
file lacks, or the other way round, is a CheckpointError. Reading a file never executes anything in it.
"""

from __future__ import annotations

import argparse
import difflib
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from ehm.backends.torch.models.build import build_encoder
from ehm.backends.torch.models.hub import reachable_or_offline
from ehm.config import ModelSource, TrainConfig, encoder_spec
from ehm.config.inputs import InputSpec
from ehm.errors import CheckpointError, ConfigError
from ehm.models.pretraining import initial_weights
from ehm.models.shapes import at_size, describe
from ehm.models.weights import fitted, read_safetensors, read_weights, select
from ehm.storage.arrays import Arrays
from ehm.storage.reading import shorten

_CONTAINERS = ("model", "module", "state_dict")
"""Keys under which training programs keep a network's tensors in their files."""

__all__ = ["Loaded", "begin_with", "classifier_name", "load_model", "read_arrays"]


@dataclass(frozen=True)
class Loaded:
    """A model with its weights in place, and what it is: ``architecture`` rebuilds it, as JSON.

    ``inputs`` is how its weights want images to be prepared.
    """

    model: Any
    architecture: dict[str, Any]
    inputs: InputSpec = field(default_factory=InputSpec)
    notes: tuple[str, ...] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.architecture["image_size"]
        return height, width


def load_model(
    source: ModelSource, classes: int = 0, pool: Literal["avg", "token"] = "avg", fc_norm: bool | None = None
) -> Loaded:
    """The encoder that ``source`` names under a fresh head of ``classes`` (0: none, the model gives pooled features).

    ``pool`` and ``fc_norm`` are :func:`build_encoder`'s; a timm model keeps its own pooling. Positions and tables of
    relative ones are resampled to ``source.image_size``. A norm behind an average starts afresh, as in MAE's
    fine-tuning, unless the weights are those of a fine-tuned encoder.

    Raises CheckpointError where weights are missing or do not fit, ConfigError where the settings do not.
    """
    if source.init.startswith("timm:"):
        return _load_timm(source, classes)
    if source.init == "scratch":
        try:
            spec = encoder_spec(source.encoder, source.image_size or (224, 224), source.patch_size, source)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return Loaded(build_encoder(spec, classes, source.drop_path, pool, fc_norm), describe(spec))
    weights = read_weights(source, read_arrays)
    arrays = weights.arrays
    if weights.timm is not None:
        model = _create(weights.timm, False, source, classes, weights.image_size)
        size = source.image_size or weights.image_size or (224, 224)
        architecture = {"family": "timm", "name": weights.timm, "image_size": list(size)}
    else:
        assert weights.spec is not None
        spec = at_size(weights.spec, source)
        if pool == "avg" and "fc_norm.weight" in arrays and "norm.weight" not in arrays:
            fc_norm = True  # a fine-tuned encoder, whose norm stands behind the average already
        model, architecture = build_encoder(spec, classes, source.drop_path, pool, fc_norm), describe(spec)
        arrays = fitted(weights, spec)
    notes = _copy(model, *select(_shapes(model), arrays, classifier_name(model), source.init, weights.notes))
    return Loaded(model, architecture, weights.inputs, notes)


def begin_with(model: nn.Module, config: TrainConfig) -> tuple[str, ...]:
    """Copy what weights ``config.model.init`` names into ``model``, one that is pretrained; notes on what was done."""
    return _copy(model, *initial_weights(config, _shapes(model), read_arrays))


def classifier_name(model: Any) -> str:
    """Name of a timm model's last linear layer: ``head``, ``fc``, ``head.fc`` ..."""
    default = "head.fc" if isinstance(model, SwinTransformer) else "head"
    return str(getattr(model, "pretrained_cfg", {}).get("classifier", default))


def read_arrays(path: Path) -> Arrays:
    """Arrays of a ``.safetensors`` file, or of a torch file that holds tensors itself or under one of ``_CONTAINERS``.

    Of the objects that published files hold beside them, ``argparse.Namespace`` is inert, and a plain dictionary stands
    in for yacs's; any other is refused.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise CheckpointError(f"{path}: not a file of tensors that torch reads safely: {_explain(error)}") from None
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return {
        str(name): (value.float() if value.is_floating_point() else value).detach().numpy()
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def _explain(error: Exception) -> str:
    """Say what torch's safe reading refused; torch's own words advise to read the file unsafely."""
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"it holds an object of {refused[1]}, and reading anything but tensors would run code; "
            "save the model's state_dict() and give that file"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or no file of torch's"
    return f"it is damaged, or no file of torch's ({shorten(_first_line(error))})"


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _copy(model: nn.Module, arrays: Arrays, notes: tuple[str, ...]) -> tuple[str, ...]:
    model.load_state_dict({**model.state_dict(), **{name: torch.from_numpy(array) for name, array in arrays.items()}})
    return notes


def _load_timm(source: ModelSource, classes: int) -> Loaded:
    """A model of timm's by name, with its published weights unless ``?pretrained=false`` follows the name."""
    name, _, option = source.init.removeprefix("timm:").partition("?")
    if option not in ("", "pretrained=true", "pretrained=false"):
        raise ConfigError(f"model.init {source.init}: after ? only pretrained=false is known")
    if not timm.is_model(name.partition(".")[0]):
        close = ", ".join(difflib.get_close_matches(name, timm.list_models(), 3)) or "timm.list_models() names them"
        raise ConfigError(f"model.init {source.init}: timm {timm.__version__} has no such model; near it: {close}")
    pretrained = option != "pretrained=false"
    with reachable_or_offline() if pretrained else nullcontext():
        model = _create(name, pretrained, source, classes, None)
    facts = model.pretrained_cfg
    size = source.image_size or facts["input_size"][1:]
    architecture = {"family": "timm", "name": name, "image_size": list(size)}
    note = f"{name} of timm, " + ("with its published weights" if pretrained else "untrained")
    try:
        inputs = InputSpec.from_pretrained_cfg(facts)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.init {source.init}: timm's pretrained_cfg of it: {error}") from None
    return Loaded(model, architecture, inputs, (note,))


def _create(name: str, pretrained: bool, source: ModelSource, classes: int, size: tuple[int, int] | None) -> Any:
    size = source.image_size or size
    options: dict[str, Any] = {"num_classes": classes, "drop_path_rate": source.drop_path or None, "img_size": size}
    try:
        try:
            return timm.create_model(name, pretrained=pretrained, **options)
        except TypeError:  # convolutional networks take images of any size, and no img_size
            return timm.create_model(name, pretrained=pretrained, **{**options, "img_size": None})
    except (OSError, RuntimeError, TypeError) as error:
        absent = isinstance(error, LocalEntryNotFoundError)  # whose own words are long
        reason = "its weights are not here, and the hub does not answer" if absent else _first_line(error)
        raise CheckpointError(
            f"model.init {source.init}: timm cannot make it: {reason} "
            f"(timm:{name}?pretrained=false needs no download, and starts untrained)"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
