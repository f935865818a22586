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
from ehm.storage.arrays import Arrays

if TYPE_CHECKING:
    from ehm.config import LoraConfig

__all__ = ["A", "B", "UpdatedLayer", "choose_layers", "merge_updates", "name_updates", "split_updates"]

A = "lora_A.default.weight"
B = "lora_B.default.weight"
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
        first = merged.pop(f"{layer.name}.{A}")
        second = merged.pop(f"{layer.name}.{B}")
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
        named[f"{layer.name}.{A}"] = own[f"{layer.name}.{A}"]
        named[f"{layer.name}.{B}"] = np.zeros_like(own[f"{layer.name}.{B}"])
    return named


def name_updates(layers: Iterable[UpdatedLayer]) -> dict[str, str]:
    """Return the names in a network in training of ``{layer}/weight``, ``{layer}/A`` and ``{layer}/B``."""
    names = {}
    for layer in layers:
        names[f"{layer.name}/weight"] = f"{layer.base}.weight"
        names[f"{layer.name}/A"] = f"{layer.name}.{A}"
        names[f"{layer.name}/B"] = f"{layer.name}.{B}"
    return names
