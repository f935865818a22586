"""Low-rank updates of linear layers (LoRA: Hu et al., 2022), as every backend names and merges them.

A layer with the weight W computes as if it were W + alpha / rank * B A, and of these only A and B learn. Nobody else
sees them: a checkpoint has the arrays of a plain network, and beside them W, A and B, because W cannot be told from the
sum. The factors have the names that the library peft gives them.

Shapes: W (out, in), A (rank, in), B (out, rank).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ehm.errors import ConfigError
from ehm.storage.arrays import Arrays, check_shapes

if TYPE_CHECKING:
    from ehm.config import LoraConfig

__all__ = [
    "FACTOR_A",
    "FACTOR_B",
    "UpdatedLayer",
    "choose_layers",
    "merge_updates",
    "name_updates",
    "pick_updates",
    "replace_updates",
    "split_updates",
]

FACTOR_A = "lora_A.default.weight"
FACTOR_B = "lora_B.default.weight"
"""Names of the factors A and B within a layer that has an update."""
_TARGETS = {
    "attn.qkv": r"attn\.(qkv|[qkv]_proj)",  # some networks of timm have three layers in place of one
    "attn.proj": r"attn\.proj",
    "mlp": r"mlp\..+",
}
"""Patterns of the names, within a block, that the targets of the configuration mean."""


@dataclass(frozen=True)
class UpdatedLayer:
    """A layer that has an update, by its ``name`` in a plain network.

    ``base`` is the name of the layer that holds W and the bias in a network in training, ``scale`` is alpha / rank.
    """

    name: str
    base: str
    scale: float


def choose_layers(linear_layers: Iterable[str], config: LoraConfig, block: str) -> list[str]:
    """Return those of a block's ``linear_layers`` that ``config`` names; raises ConfigError if there are none.

    ``block`` is the name of the block's class.
    """
    own = list(linear_layers)
    names: list[str] = []
    for target in config.targets:
        found = [name for name in own if re.fullmatch(_TARGETS[target], name)]
        if not found:
            raise ConfigError(f"lora.targets {target}: a {block} of this encoder has no such linear layer")
        names += found
    return names


def merge_updates(arrays: Arrays, layers: Iterable[UpdatedLayer]) -> Arrays:
    """Return the arrays of a network in training as those of a plain one: every update is added to its weight."""
    merged = dict(arrays)
    for layer in layers:
        first = merged.pop(f"{layer.name}.{FACTOR_A}")
        second = merged.pop(f"{layer.name}.{FACTOR_B}")
        weight = merged.pop(f"{layer.base}.weight")
        bias = merged.pop(f"{layer.base}.bias", None)
        merged[f"{layer.name}.weight"] = weight + second @ first * np.float32(layer.scale)
        if bias is not None:
            merged[f"{layer.name}.bias"] = bias
    return merged


def split_updates(arrays: Arrays, layers: Iterable[UpdatedLayer], own: Arrays) -> Arrays:
    """Return the arrays of a plain network as those of one in training whose updates are zero.

    ``own`` are the arrays of the network in training, whose A stay.
    """
    named = dict(arrays)
    for layer in layers:
        for part in ("weight", "bias"):
            array = named.pop(f"{layer.name}.{part}", None)
            if array is not None:
                named[f"{layer.base}.{part}"] = array
        named[f"{layer.name}.{FACTOR_A}"] = own[f"{layer.name}.{FACTOR_A}"]
        named[f"{layer.name}.{FACTOR_B}"] = np.zeros_like(own[f"{layer.name}.{FACTOR_B}"])
    return named


def pick_updates(arrays: Arrays, layers: Iterable[UpdatedLayer]) -> Arrays:
    """Return W, A and B of ``layers`` out of the arrays of a network in training, by the names of :func:`name_updates`.

    A run needs them besides the merged weights to go on exactly.
    """
    return {key: arrays[name] for key, name in name_updates(layers).items()}


def replace_updates(arrays: Arrays, layers: Iterable[UpdatedLayer], updates: Arrays) -> Arrays:
    """Return the arrays of a network in training with W, A and B of ``layers`` as :func:`pick_updates` gave them.

    Raises CheckpointError if ``updates`` are those of other layers or of another rank.
    """
    names = name_updates(layers)
    check_shapes({key: arrays[name].shape for key, name in names.items()}, updates)
    return {**arrays, **{names[key]: array for key, array in updates.items()}}


def name_updates(layers: Iterable[UpdatedLayer]) -> dict[str, str]:
    """Return the names that ``{layer}/weight``, ``{layer}/A`` and ``{layer}/B`` have in a network in training."""
    names = {}
    for layer in layers:
        names[f"{layer.name}/weight"] = f"{layer.base}.weight"
        names[f"{layer.name}/A"] = f"{layer.name}.{FACTOR_A}"
        names[f"{layer.name}/B"] = f"{layer.name}.{FACTOR_B}"
    return names
