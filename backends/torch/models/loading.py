"""Load an encoder into torch: from our runs, published files or timm, or without any weights.

:mod:`ehm.models.fitting` and :mod:`ehm.models.pretraining` choose the arrays that a network takes; here are torch's own
files, timm's models and the copying. A head or a decoder of a file is left aside and said in the notes; anything else
that the encoder has and the file lacks, or the other way round, is a CheckpointError. Reading a file never executes
anything in it.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from numpy.typing import NDArray
from safetensors.numpy import save
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.models.build import build_encoder
from ehm.backends.torch.models.pooling import pool_as
from ehm.backends.torch.models.timm_vit import read_timm_spec
from ehm.config import ModelSource, TrainConfig
from ehm.config.inputs import InputSpec
from ehm.config.sections import ChannelRule
from ehm.errors import CheckpointError, ConfigError
from ehm.models.channels import adapt_channels, adapt_kernel, describe_adaptation
from ehm.models.fitting import resize_weights, select_arrays
from ehm.models.hub import go_offline_if_unreachable
from ehm.models.opening import open_model, read_safetensors
from ehm.models.pretraining import select_initial_arrays
from ehm.models.shapes import drop_unused_query, spec_from_settings, spec_to_json
from ehm.models.weights import LoadedModel, Pool, Provenance, Weights
from ehm.storage.arrays import Arrays
from ehm.storage.reading import shorten
from ehm.storage.torch_file import TORCHSCRIPT, explain_refusal, flatten_tensors

__all__ = ["find_classifier_name", "load_initial_weights", "load_model", "open_weights", "read_arrays"]

_TIMM = "timm:"
_TOLD = ("fixed_input_size", "first_conv", "classifier")
"""Keys of timm's ``pretrained_cfg`` that describe a network, and not how it was trained."""


def load_model(
    source: ModelSource,
    classes: int = 0,
    pool: Pool = "avg",
    fc_norm: bool | None = None,
    weights: Weights | None = None,
    repool: bool = False,
    channels: int | None = None,
) -> LoadedModel:
    """Load the encoder that ``source`` names under a fresh head of ``classes``, or none: it gives pooled features then.

    ``pool`` and ``fc_norm`` are :func:`build_encoder`'s; a timm model keeps its own pooling unless ``repool`` is set.
    Positions and tables of relative ones are resampled to ``source.image_size``. A norm behind an average starts
    afresh, as in MAE's fine-tuning, unless the weights are those of a fine-tuned encoder. ``weights`` are what
    ``source`` names if that was opened already. The patch embedding is adapted to ``channels``, if they are given and
    are others than those of the weights.

    Raises CheckpointError if weights are missing or do not fit, ConfigError if the settings do not.
    """
    if source.init.startswith(_TIMM):
        loaded = _load_from_timm(source, classes, channels)
        if repool:
            pool_as(loaded.model, pool, source.init)
        return loaded
    if source.init == "scratch":
        spec = spec_from_settings(source, channels or 3)
        model = build_encoder(spec, classes, source.drop_path, pool, fc_norm)
        return LoadedModel(model, spec_to_json(spec), Provenance("scratch", "scratch"))
    if weights is None:
        weights = open_weights(source)
    if weights.timm is not None:
        pixels = weights.provenance.inputs.pixels
        model = _create_timm_model(weights.timm, False, source, classes, weights.image_size, pixels.count)
        size = source.image_size or weights.image_size or (224, 224)
        architecture = _describe_network(model, weights.timm, size)
        if repool:
            pool_as(model, pool, source.init)
    else:
        assert weights.spec is not None
        weights = adapt_channels(weights, channels or weights.spec.channels, source.adapt_channels)
        weights = resize_weights(weights, source)
        assert weights.spec is not None
        if pool == "avg" and weights.has_norm_behind_pooling:
            fc_norm = True  # else the norm that the weights have would be left out, and none be used
        model = build_encoder(weights.spec, classes, source.drop_path, pool, fc_norm)
        architecture = spec_to_json(drop_unused_query(weights.spec, pool))
    assumptions = weights.provenance.notes
    classifier = find_classifier_name(model)
    arrays, notes = select_arrays(_list_shapes(model), weights.arrays, classifier, source.init, assumptions)
    _copy_arrays(model, arrays)
    return LoadedModel(model, architecture, weights.provenance, notes)


def open_weights(source: ModelSource) -> Weights:
    """Open what ``source.init`` names as arrays: what :func:`ehm.models.opening.open_model` opens, and ``timm:NAME``.

    Raises as that function and :func:`load_model` do; a network of timm's that is no encoder of ours has no spec.
    """
    if source.init.startswith(_TIMM):
        return _open_timm_weights(source)
    return open_model(source, read_arrays)


def load_initial_weights(model: nn.Module, config: TrainConfig, weights: Weights | None = None) -> tuple[str, ...]:
    """Copy the weights that ``config.model.init`` names into ``model``, one in pretraining; return notes on them.

    ``weights`` are these if they were opened already. Without ``config.model.init`` nothing is copied.
    """
    arrays, notes = select_initial_arrays(config, _list_shapes(model), open_weights, weights)
    _copy_arrays(model, arrays)
    return notes


def find_classifier_name(model: Any) -> str:
    """Return the name of a timm model's last linear layer: ``head``, ``fc``, ``head.fc`` ..."""
    # the encoders that we build ourselves have no pretrained_cfg
    default = "head"
    if isinstance(model, SwinTransformer):
        default = "head.fc"
    return str(getattr(model, "pretrained_cfg", {}).get("classifier", default))


def read_arrays(path: Path) -> Arrays:
    """Read the arrays of a ``.safetensors`` file, or of a torch file with tensors at its top or in sections below it.

    Anything but tensors is refused with a CheckpointError, unless it cannot run code.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        # published files hold their program's settings beside the tensors: argparse's namespace is inert, and a plain
        # dictionary stands in for yacs's
        with torch.serialization.safe_globals([argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise CheckpointError(f"{path}: not a file of tensors that torch reads safely: {_explain(error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return flatten_tensors(content, _to_array)


def _to_array(value: Any) -> NDArray[Any] | None:
    """Return the numbers of a tensor; None for anything else."""
    if not isinstance(value, Tensor):
        return None
    if value.is_floating_point():  # NumPy has no bfloat16
        value = value.float()
    array: NDArray[Any] = value.detach().numpy()
    return array


def _explain(error: Exception) -> str:
    """Say what torch's safe reading refused; torch's own words advise to read the file unsafely."""
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return explain_refusal(refused[1])
    if "TorchScript" in str(error):
        return TORCHSCRIPT
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or no file of torch's"
    return f"it is damaged, or no file of torch's ({shorten(_take_first_line(error))})"


def _list_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _copy_arrays(model: nn.Module, arrays: Arrays) -> None:
    """Copy ``arrays`` into ``model``; parameters that they lack stay as they are."""
    state = model.state_dict()
    for name, array in arrays.items():
        state[name] = torch.from_numpy(array)
    model.load_state_dict(state)


def _open_timm_weights(source: ModelSource) -> Weights:
    """Open the encoder of a network of timm's; one that is none of ours has neither spec nor arrays."""
    # at its own image size, so that the arrays are those that were published; whoever takes them resamples them
    published = source.model_copy(update={"image_size": None})
    with seed_weights():  # an untrained network is the same every time
        loaded = _load_from_timm(published, 0)
    found = read_timm_spec(loaded.model, source.init)
    provenance = replace(loaded.provenance, notes=loaded.notes)
    if found is None:
        return Weights({}, provenance, timm=loaded.architecture["name"])
    spec, arrays = found
    digest = hashlib.sha256(save(dict(arrays))).hexdigest()
    return Weights(arrays, replace(provenance, sha256=digest), spec)


def _load_from_timm(source: ModelSource, classes: int, channels: int | None = None) -> LoadedModel:
    """Load a model of timm's by name, with its published weights unless ``?pretrained=false`` follows the name.

    Its first convolution is adapted to ``channels``, if they are given.
    """
    name, _, option = source.init.removeprefix(_TIMM).partition("?")
    if option not in ("", "pretrained=true", "pretrained=false"):
        raise ConfigError(f"model.init {source.init}: after ? only pretrained=false is known")
    if not timm.is_model(name.partition(".")[0]):
        close = ", ".join(difflib.get_close_matches(name, timm.list_models(), 3)) or "timm.list_models() names them"
        raise ConfigError(f"model.init {source.init}: timm {timm.__version__} has no such model; near it: {close}")
    pretrained = option != "pretrained=false"
    with go_offline_if_unreachable() if pretrained else nullcontext():
        model = _create_timm_model(name, pretrained, source, classes, None)
    published = model.pretrained_cfg
    notes: tuple[str, ...] = ()
    own = published["input_size"][0]
    if channels is not None and channels != own:
        adapted = _create_timm_model(name, False, source, classes, None, channels)
        _copy_adapted(model, adapted, published["first_conv"], channels, source.adapt_channels)
        model = adapted
        notes = (describe_adaptation(own, channels, source.adapt_channels),)
    size = source.image_size or published["input_size"][1:]
    architecture = _describe_network(model, name, size)
    weights = "with its published weights" if pretrained else "untrained"
    try:
        inputs = InputSpec.from_pretrained_cfg(published)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.init {source.init}: timm's pretrained_cfg of it: {error}") from None
    return LoadedModel(
        model, architecture, Provenance(source.init, "timm", inputs=inputs), (f"{name} of timm, {weights}", *notes)
    )


def _describe_network(model: Any, name: str, size: Sequence[int]) -> dict[str, Any]:
    """Return what checkpoints say of a network of timm's: its name, and what timm tells of it beside its weights."""
    published = {key: model.pretrained_cfg[key] for key in _TOLD if key in model.pretrained_cfg}
    return {"family": "timm", "name": name, "image_size": list(size), "pretrained_cfg": published}


def _create_timm_model(
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
            reason = _take_first_line(error)
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


def _take_first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0]
    return type(error).__name__  # some errors have no words
