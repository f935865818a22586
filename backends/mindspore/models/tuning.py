"""Parameters of a model that learn, if not all of them do, and their layers."""

from __future__ import annotations

import re

import numpy as np
from mindspore import nn

from ehm.config.encoders import EncoderSpec, SwinSpec
from ehm.errors import ConfigError
from ehm.models.encoder_parts import HEADS

__all__ = ["freeze_blocks", "layer_of"]

_BEHIND = ("fc_norm.", "attn_pool.", "head.", *HEADS)
"""Beginnings of the names of what lies behind the blocks and their norm."""
_MOMENTS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of what batch norms keep, which no optimiser moves."""


def layer_of(name: str, spec: EncoderSpec) -> int:
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


def freeze_blocks(model: nn.Cell, spec: EncoderSpec, count: int, prefix: str = "") -> tuple[str, ...]:
    """Let the first ``count`` blocks of an encoder of ``spec`` not learn, nor the embedding before them.

    The encoder is ``model``, or what ``prefix`` goes before in the names of its parameters. Returns a note on how many
    parameters learn, and none if all do. Raises ConfigError if there are no such blocks.
    """
    if not count:
        return ()
    if count > spec.blocks:
        raise ConfigError(f"model.freeze {count}: this encoder, {spec.description}, has {spec.blocks} blocks")
    learning = 0
    total = 0
    for name, parameter in model.parameters_and_names():
        own = name.removeprefix(prefix)
        is_encoders = name.startswith(prefix)
        # timm counts the norm behind the blocks as a part of the last one
        if is_encoders and layer_of(own, spec) <= count and not own.startswith("norm."):
            parameter.requires_grad = False
        if name.endswith(_MOMENTS):
            continue
        size = int(np.prod(parameter.shape))
        total += size
        if parameter.requires_grad:
            learning += size
    return (f"{learning:,} of {total:,} parameters learn",)
