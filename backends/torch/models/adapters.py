"""Low-rank updates of an encoder's linear layers by the library peft, whose layers those in training are.

Nobody else sees them: :func:`merge_arrays` gives the plain network's arrays, under timm's names, and
:func:`take_updates` what a run needs besides to go on exactly (:mod:`ehm.backends.low_rank`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ehm.backends.low_rank import (
    UpdatedLayer,
    choose_layers,
    merge_updates,
    name_updates,
    pick_updates,
    replace_updates,
    split_updates,
)
from ehm.backends.torch.engine.tensors import load_arrays, to_arrays
from ehm.config import LoraConfig
from ehm.errors import BackendError, ConfigError
from ehm.installation import build_install_command
from ehm.storage.arrays import Arrays

__all__ = [
    "add_adapters",
    "compute_effective_weight",
    "has_adapter",
    "load_merged",
    "load_updates",
    "merge_arrays",
    "take_updates",
]

_ADAPTER = "default"
"""The name that peft gives to the one update of a layer."""


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
        linear_layers = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        names = choose_layers(linear_layers, config, type(block).__name__)
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


def compute_effective_weight(layer: Any) -> Tensor:
    """Return the weight of a linear layer, the update included if it has one: (out, in)."""
    if not has_adapter(layer):
        weight: Tensor = layer.weight
        return weight
    adapted: Tensor = layer.weight + layer.get_delta_weight(_ADAPTER)
    return adapted


def merge_arrays(model: nn.Module) -> Arrays:
    """Copy parameters and buffers of a network by name, with every update added to its weight, and no other trace."""
    return merge_updates(to_arrays(model), _list_updated(model))


def load_merged(model: nn.Module, arrays: Arrays) -> None:
    """Copy the arrays of a plain network into ``model``, whose updates are zero then.

    Raises CheckpointError as :func:`load_arrays` does.
    """
    layers = _list_updated(model)
    own = to_arrays(model, set(name_updates(layers).values()))
    load_arrays(model, split_updates(arrays, layers, own))


def take_updates(model: nn.Module) -> Arrays:
    """Copy W, A and B of all layers that have an update, as ``{layer}/weight``, ``{layer}/A`` and ``{layer}/B``."""
    layers = _list_updated(model)
    return pick_updates(to_arrays(model, set(name_updates(layers).values())), layers)


def load_updates(model: nn.Module, updates: Arrays) -> None:
    """Restore what :func:`take_updates` gave; raises CheckpointError if it is that of other layers or another rank."""
    load_arrays(model, replace_updates(to_arrays(model), _list_updated(model), updates))


def _list_updated(model: nn.Module) -> list[UpdatedLayer]:
    layers = []
    for name, module in model.named_modules():
        if has_adapter(module):
            layers.append(UpdatedLayer(name, f"{name}.base_layer", float(module.scaling[_ADAPTER])))
    return layers
