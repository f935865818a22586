"""Low-rank updates of an encoder's linear layers (:mod:`ehm.backends.low_rank`), under the names of the library peft.

peft itself needs torch. Shapes: W (O, I), A (rank, I), B (O, rank).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.low_rank import (
    UpdatedLayer,
    choose_layers,
    merge_updates,
    name_updates,
    pick_updates,
    replace_updates,
    split_updates,
)
from ehm.backends.mindspore.engine.noise import draw_fractions, make_keys
from ehm.backends.mindspore.engine.tensors import load_arrays, set_values, to_arrays
from ehm.backends.mindspore.models.blocks import Dense
from ehm.config import LoraConfig
from ehm.storage.arrays import Arrays, drop_names

__all__ = [
    "AdaptedDense",
    "add_adapters",
    "load_merged",
    "load_updates",
    "merge_arrays",
    "seed_dropout",
    "take_updates",
]

_KEYS = "lora_dropout.keys"
"""End of the name of the parameter that all dropouts of a model share."""


class _Dropout(nn.Cell):
    """Dropout in training that follows from ``keys`` (2,) int32 and from ``salt``: a resumed run drops the same."""

    def __init__(self, rate: float, keys: Parameter, salt: int) -> None:
        super().__init__()
        self.rate = rate
        self.keys = keys
        self.salt = Tensor(make_keys([salt]))

    def construct(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., I)."""
        if not self.training:
            return x
        is_kept = draw_fractions(ops.bitwise_xor(self.keys, self.salt), x.shape) >= self.rate
        return x * (is_kept.astype(x.dtype) / (1 - self.rate))


class AdaptedDense(Dense):
    """The linear ``layer`` with an update, which is zero at first: (..., I) -> (..., O)."""

    def __init__(self, layer: Dense, config: LoraConfig, rng: np.random.Generator, dropout: nn.Cell | None) -> None:
        nn.Cell.__init__(self)
        assert config.rank is not None
        outputs, inputs = layer.weight.shape
        self.weight = layer.weight
        self.bias = layer.bias
        self.dtype = layer.dtype
        self.scale = config.alpha / config.rank
        self.lora_dropout = dropout
        self.lora_A = _name_default(Dense(inputs, config.rank, layer.dtype, bias=False))
        self.lora_B = _name_default(Dense(config.rank, outputs, layer.dtype, bias=False))
        # the range of torch's linear layers, which peft draws A from
        limit = 1 / math.sqrt(inputs)
        self.lora_A[0].weight.set_data(Tensor(rng.uniform(-limit, limit, (config.rank, inputs)).astype(np.float32)))

    def project(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`Dense.project`."""
        product = super().project(x, bias)
        if self.lora_dropout is not None:
            x = self.lora_dropout(x)
        return product + self.lora_B(self.lora_A(x)) * self.scale


def _name_default(layer: Dense) -> nn.Cell:
    """Return ``layer`` under peft's name of the one update that a layer has."""
    return nn.SequentialCell(OrderedDict(default=layer))


def add_adapters(blocks: Sequence[nn.Cell], config: LoraConfig, seed: int) -> None:
    """Give the layers of ``blocks`` that ``config`` names an update, which begins by ``seed``.

    The parameters of an update learn if the weight did, which stays as it is. Raises ConfigError if blocks have no such
    layers.
    """
    rng = np.random.default_rng([seed, 3])  # heads begin with other numbers of the seed
    keys = Parameter(Tensor(np.zeros(2, np.int32)), requires_grad=False)
    count = 0
    for block in blocks:
        linear_layers = {name: cell for name, cell in block.cells_and_names() if isinstance(cell, Dense)}
        for name in choose_layers(linear_layers, config, type(block).__name__):
            layer = linear_layers[name]
            dropout = _Dropout(config.dropout, keys, count) if config.dropout else None
            adapted = AdaptedDense(layer, config, rng, dropout)
            for factor in (adapted.lora_A, adapted.lora_B):
                factor[0].weight.requires_grad = layer.weight.requires_grad
            _replace_cell(block, name, adapted)
            count += 1


def _replace_cell(block: nn.Cell, path: str, cell: nn.Cell) -> None:
    parent_path, _, name = path.rpartition(".")
    parent: Any = block
    for part in parent_path.split("."):
        parent = getattr(parent, part)
    setattr(parent, name, cell)


def seed_dropout(model: nn.Cell, numbers: list[int]) -> None:
    """Let what the updates of ``model`` leave out in training follow from ``numbers`` from now on."""
    for name, parameter in model.parameters_and_names():
        if name.endswith(_KEYS):
            set_values(parameter, make_keys(numbers))


def merge_arrays(model: nn.Cell) -> Arrays:
    """Copy the parameters of a network by name, with every update added to its weight, and no other trace."""
    arrays = to_arrays(model)
    return merge_updates(drop_names(arrays, _list_keys(model)), _list_updated(model))


def load_merged(model: nn.Cell, arrays: Arrays) -> None:
    """Copy the arrays of a plain network into ``model``, whose updates are zero then.

    Raises CheckpointError as :func:`load_arrays` does.
    """
    layers = _list_updated(model)
    keys = _list_keys(model)
    own = to_arrays(model, {*name_updates(layers).values(), *keys})
    named = split_updates(arrays, layers, own)
    load_arrays(model, named | {name: own[name] for name in keys})


def take_updates(model: nn.Cell) -> Arrays:
    """Copy W, A and B of all layers that have an update, as ``{layer}/weight``, ``{layer}/A`` and ``{layer}/B``."""
    layers = _list_updated(model)
    return pick_updates(to_arrays(model, set(name_updates(layers).values())), layers)


def load_updates(model: nn.Cell, updates: Arrays) -> None:
    """Restore what :func:`take_updates` gave; raises CheckpointError if it is that of other layers or another rank."""
    load_arrays(model, replace_updates(to_arrays(model), _list_updated(model), updates))


def _list_updated(model: nn.Cell) -> list[UpdatedLayer]:
    layers = []
    for name, cell in model.cells_and_names():
        if isinstance(cell, AdaptedDense):
            layers.append(UpdatedLayer(name, name, cell.scale))
    return layers


def _list_keys(model: nn.Cell) -> list[str]:
    return [name for name, _ in model.parameters_and_names() if name.endswith(_KEYS)]
