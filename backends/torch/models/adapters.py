"""Low-rank updates of an encoder's linear layers (LoRA: Hu et al., 2022), by the library peft.

A layer with the weight W computes as if it were W + alpha / rank * B A, and of these only A and B learn. The layers in
training are peft's. Nobody else sees them: :func:`merge_arrays` gives the plain network's arrays, under timm's names,
and :func:`take_updates` what a run needs besides to go on exactly, because W itself cannot be told from the sum.

Shapes: W (out, in), A (rank, in), B (out, rank).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ehm.backends.torch.engine.tensors import load_arrays, to_arrays
from ehm.config import LoraConfig
from ehm.errors import BackendError, ConfigError
from ehm.installation import build_install_command
from ehm.storage.arrays import Arrays, check_shapes

__all__ = [
    "add_adapters",
    "effective_weight",
    "has_adapter",
    "load_merged",
    "load_updates",
    "merge_arrays",
    "take_updates",
]

_ADAPTER = "default"
"""The name that peft gives to the one update of a layer."""
_TARGETS = {
    "attn.qkv": r"attn\.(qkv|[qkv]_proj)",  # some networks of timm have three layers in place of one
    "attn.proj": r"attn\.proj",
    "mlp": r"mlp\..+",
}
"""Patterns of the names, within a block, that the targets of the configuration mean."""
_BASE = "base_layer"
_A = f"lora_A.{_ADAPTER}.weight"
_B = f"lora_B.{_ADAPTER}.weight"


def add_adapters(blocks: Sequence[nn.Module], config: LoraConfig) -> None:
    """Give the layers of ``blocks`` that ``config`` names an update, which is zero at first; drawn by torch's numbers.

    The parameters of the updates learn; whether others do stays as it is. Raises BackendError if peft is not installed,
    ConfigError if blocks have no such layers.
    """
    try:
        import peft
    except ImportError as error:
        if error.name == "peft":
            raise BackendError(
                f"lora.rank: peft is not installed; {build_install_command('lora')} installs it"
            ) from None
        # it imports other libraries, whose versions have to go together
        raise BackendError(f"lora.rank: peft cannot be imported: {error}") from None
    for block in blocks:
        names = _list_targets(block, config)
        settings: dict[str, Any] = {
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "target_modules": "|".join(map(re.escape, names)),
        }
        if "attn.qkv" in names:
            _call_layer(block.attn)
        # peft lets nothing but its updates learn
        others = [(parameter, parameter.requires_grad) for parameter in block.parameters()]
        peft.inject_adapter_in_model(peft.LoraConfig(**settings), block)
        for parameter, learns in others:
            parameter.requires_grad_(learns)


def _list_targets(block: nn.Module, config: LoraConfig) -> list[str]:
    """Return the names within ``block`` of the linear layers that ``config`` names."""
    linear_layers = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    names: list[str] = []
    for target in config.targets:
        found = [name for name in linear_layers if re.fullmatch(_TARGETS[target], name)]
        if not found:
            raise ConfigError(
                f"lora.targets {target}: a {type(block).__name__} of this encoder has no such linear layer"
            )
        names += found
    return names


def _call_layer(attn: Any) -> None:
    """Let an attention of timm's call its layer of queries, keys and values, and not just read the layer's weight.

    Those with biases of queries and values alone, as BEiT's and DINOv3's, would multiply by the weight, past an update.
    """
    if getattr(attn, "q_bias", None) is None:
        return
    if not hasattr(attn, "qkv_bias_separate"):
        raise ConfigError(f"lora.targets attn.qkv: {type(attn).__name__} of timm has no way to an update; leave it out")
    attn.qkv_bias_separate = True


def has_adapter(layer: Any) -> bool:
    """Tell whether a linear layer has an update."""
    return hasattr(layer, "lora_A")


def effective_weight(layer: Any) -> Tensor:
    """Return the weight of a linear layer, the update included if it has one: (out, in)."""
    if not has_adapter(layer):
        weight: Tensor = layer.weight
        return weight
    adapted: Tensor = layer.weight + layer.get_delta_weight(_ADAPTER)
    return adapted


def merge_arrays(model: nn.Module) -> Arrays:
    """Copy parameters and buffers of a network by name, with every update added to its weight, and no other trace."""
    arrays = to_arrays(model)
    for name, layer in _list_adapted(model):
        first = arrays.pop(f"{name}.{_A}")
        second = arrays.pop(f"{name}.{_B}")
        weight = arrays.pop(f"{name}.{_BASE}.weight")
        arrays[f"{name}.weight"] = weight + second @ first * np.float32(layer.scaling[_ADAPTER])
        bias = arrays.pop(f"{name}.{_BASE}.bias", None)
        if bias is not None:
            arrays[f"{name}.bias"] = bias
    return arrays


def load_merged(model: nn.Module, arrays: Arrays) -> None:
    """Copy the arrays of a plain network into ``model``, whose updates are zero then.

    Raises CheckpointError as :func:`load_arrays` does.
    """
    own = to_arrays(model, set(_name_updates(model).values()))
    named = dict(arrays)
    for name, _ in _list_adapted(model):
        for part in ("weight", "bias"):
            array = named.pop(f"{name}.{part}", None)
            if array is not None:
                named[f"{name}.{_BASE}.{part}"] = array
        named[f"{name}.{_A}"] = own[f"{name}.{_A}"]
        named[f"{name}.{_B}"] = np.zeros_like(own[f"{name}.{_B}"])
    load_arrays(model, named)


def take_updates(model: nn.Module) -> Arrays:
    """Copy W, A and B of all layers that have an update, as ``{layer}/weight``, ``{layer}/A`` and ``{layer}/B``."""
    names = _name_updates(model)
    own = to_arrays(model, set(names.values()))
    return {key: own[name] for key, name in names.items()}


def load_updates(model: nn.Module, updates: Arrays) -> None:
    """Restore what :func:`take_updates` gave; raises CheckpointError if it is that of other layers or another rank."""
    names = _name_updates(model)
    own = to_arrays(model)
    check_shapes({key: own[name].shape for key, name in names.items()}, updates)
    load_arrays(model, own | {names[key]: array for key, array in updates.items()})


def _list_adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if has_adapter(module):
            yield name, module


def _name_updates(model: nn.Module) -> dict[str, str]:
    """Return peft's name of each array of :func:`take_updates`."""
    names = {}
    for name, _ in _list_adapted(model):
        names[f"{name}/weight"] = f"{name}.{_BASE}.weight"
        names[f"{name}/A"] = f"{name}.{_A}"
        names[f"{name}/B"] = f"{name}.{_B}"
    return names
