"""Parameters of a model that learn, if not all of them do, and their layers."""

from __future__ import annotations

import re

import numpy as np
from mindspore import nn

from ehm.backends.low_rank import FACTOR_A, FACTOR_B
from ehm.backends.mindspore.models.adapters import add_adapters
from ehm.config import LoraConfig
from ehm.config.encoders import EncoderSpec, SwinSpec
from ehm.errors import ConfigError
from ehm.models.encoder_parts import HEADS

__all__ = ["find_layer", "restrict_learning"]

_BEHIND = ("fc_norm.", "attn_pool.", "head.", *HEADS)
"""Beginnings of the names of what lies behind the blocks and their norm."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "lora_dropout.keys")
"""Ends of the names of what batch norms and dropout keep, which no optimiser moves."""


def find_layer(name: str, spec: EncoderSpec) -> int:
    """Return the layer of a parameter as timm counts: the embedding (0), the blocks, the head.

    The last norm belongs to the last block, a norm behind the average to the head; a Swin's merging of tokens belongs
    to the block behind it. The head of a model in pretraining is all that predicts what is hidden, and its mask token.
    """
    if name.startswith(_BEHIND):
        return spec.blocks + 1
    if name.startswith("norm."):
        return spec.blocks
    if isinstance(spec, SwinSpec):
        stage = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+))?", name)
        if stage is None:
            return 0
        return sum(spec.depths[: int(stage[1])]) + int(stage[2] or 0) + 1
    block = re.match(r"blocks\.(\d+)\.", name)
    return 0 if block is None else int(block[1]) + 1


def restrict_learning(
    model: nn.Cell, spec: EncoderSpec, frozen: int, lora: LoraConfig, seed: int, prefix: str = ""
) -> tuple[str, ...]:
    """Let the first ``frozen`` blocks of an encoder of ``spec`` not learn, and of the others only what ``lora`` says.

    The encoder is ``model``, or what ``prefix`` goes before in the names of its parameters; heads and decoders go on
    learning like all that lies outside. The updates begin by ``seed``. Returns a note on how many parameters learn, and
    none if all do. Raises ConfigError if the encoder has no such blocks or layers.
    """
    if not frozen and lora.rank is None:
        return ()
    if frozen:
        _freeze_blocks(model, spec, frozen, prefix)
    if lora.rank is not None:
        if frozen >= spec.blocks:
            raise ConfigError(
                f"lora.rank {lora.rank}: this encoder, {spec.description}, has {spec.blocks} blocks, and none of them "
                "learns"
            )
        add_adapters(_list_blocks(model, prefix)[frozen:], lora, seed)
        _freeze_weights(model, spec, lora.norms, prefix)
        for name, parameter in model.parameters_and_names():
            parameter.name = name  # cells that were replaced have names that repeat themselves
    learning = 0
    total = 0
    for name, parameter in model.parameters_and_names():
        if name.endswith(_STATISTICS):
            continue
        size = int(np.prod(parameter.shape))
        total += size
        if parameter.requires_grad:
            learning += size
    return (f"{learning:,} of {total:,} parameters learn",)


def _list_blocks(model: nn.Cell, prefix: str) -> list[nn.Cell]:
    """Return the blocks of a ViT, or of all stages of a Swin, in order; not those of a decoder."""
    blocks = []
    for name, cell in model.cells_and_names():
        if name.startswith(prefix) and re.fullmatch(r"(layers\.\d+\.)?blocks\.\d+", name.removeprefix(prefix)):
            blocks.append(cell)
    return blocks


def _freeze_blocks(model: nn.Cell, spec: EncoderSpec, count: int, prefix: str) -> None:
    """Freeze the first ``count`` blocks, and patch embedding, class token, registers and positions before."""
    if count > spec.blocks:
        raise ConfigError(f"model.freeze {count}: this encoder, {spec.description}, has {spec.blocks} blocks")
    for name, parameter in model.parameters_and_names():
        own = name.removeprefix(prefix)
        # timm counts the norm behind the blocks as a part of the last one
        if name.startswith(prefix) and find_layer(own, spec) <= count and not own.startswith("norm."):
            parameter.requires_grad = False


def _freeze_weights(model: nn.Cell, spec: EncoderSpec, norms: bool, prefix: str) -> None:
    """Freeze all of an encoder but its updates, heads above it, and its norms if they shall learn."""
    for name, parameter in model.parameters_and_names():
        if not name.startswith(prefix) or name.endswith((FACTOR_A, FACTOR_B)):
            continue
        module = name.rpartition(".")[0].rpartition(".")[2]
        if find_layer(name.removeprefix(prefix), spec) <= spec.blocks and not (norms and "norm" in module):
            parameter.requires_grad = False
