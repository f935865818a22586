"""Find the tokenizer of BEiT's visual tokens: a run of ``ehm tokenizer train``, or DALL-E's published encoder.

Here are its arrays and its sizes; a backend builds the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ehm.config import TokenizerConfig
from ehm.errors import CheckpointError, ConfigError
from ehm.models.opening import read_safetensors
from ehm.storage.arrays import Arrays, to_float32
from ehm.storage.checkpoint import open_checkpoint
from ehm.storage.torch_file import StandIn, read_torch_file

__all__ = ["DalleSizes", "TokenizerWeights", "infer_dalle_sizes", "open_tokenizer"]

_ABSENT = (
    "objective beit needs visual tokens: give DALL-E's encoder.pkl or a tokenizer of your own images "
    "(ehm tokenizer train --out runs/tokenizer) as model.tokenizer"
)
_COMMANDS = {"pretrain": "train", "classifier": "finetune"}
"""Commands whose names differ from the kind of checkpoint that they write."""
_DALLE = "DALL-E's encoder.pkl or a file of its tensors, and nothing in it was executed"
_DALLE_CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
)
"""The classes of DALL-E's ``encoder.pkl``, a pickled module of the package ``dall_e``."""
_BLOCK = re.compile(r"blocks\.group_(\d+)\.block_(\d+)\.")


@dataclass(frozen=True)
class TokenizerWeights:
    """The arrays of a tokenizer; ``config`` is that of a run of ours, None for DALL-E's encoder from ``origin``."""

    arrays: Arrays
    origin: Path
    config: TokenizerConfig | None


@dataclass(frozen=True)
class DalleSizes:
    """DALL-E's encoder as numbers: ``groups`` of ``blocks`` residual blocks, ``width`` wide in the first group."""

    vocabulary: int = 8192
    width: int = 256
    groups: int = 4
    blocks: int = 2


def open_tokenizer(source: str | None) -> TokenizerWeights:
    """Open the tokenizer that ``source`` names.

    ``source`` is a run folder or checkpoint of ``ehm tokenizer train``, DALL-E's ``encoder.pkl``, or its tensors in a
    ``.safetensors`` or torch file. Raises ConfigError if there is none, and CheckpointError if it is no tokenizer, was
    altered, or is a pickle of anything else.
    """
    path = Path(source or "")
    if not source or not path.exists():
        problem = f", not {source}, which does not exist" if source else ""
        raise ConfigError(_ABSENT + problem)
    # the weights file of a checkpoint stands for the checkpoint
    if path.is_file() and not (path.parent / "state.json").is_file():
        return TokenizerWeights(_read_dalle(path), path, None)
    opened = open_checkpoint(path)
    if opened.kind != "tokenizer":
        raise CheckpointError(f"{path}: a run of ehm {_COMMANDS.get(opened.kind, opened.kind)}, not of ehm tokenizer")
    return TokenizerWeights(opened.model, path, TokenizerConfig.model_validate(opened.metadata["config"]))


def infer_dalle_sizes(arrays: Arrays) -> DalleSizes:
    """Infer the sizes of DALL-E's encoder from the names and shapes of its ``arrays``.

    Raises CheckpointError if they are not such an encoder's.
    """
    first = arrays.get("blocks.input.w")
    last = arrays.get("blocks.output.conv.w")
    groups = 0
    blocks = 0
    for name in arrays:
        match = _BLOCK.match(name)
        if match is not None:
            groups = max(groups, int(match[1]))
            blocks = max(blocks, int(match[2]))
    if first is None or last is None or not groups:
        raise CheckpointError("not the tensors of DALL-E's encoder: blocks.input.w or blocks.output.conv.w missing")
    # sizes that the names and shapes give; loading checks all the rest
    return DalleSizes(last.shape[0], first.shape[0], groups, blocks)


def _read_dalle(path: Path) -> Arrays:
    """Read the arrays of a file of DALL-E's encoder; CheckpointError if it holds anything else than these."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_torch_file(path, _DALLE, _DALLE_CLASSES)
    # a module, or a file of its tensors alone
    arrays = _collect_parameters(content, "") if isinstance(content, StandIn) else content
    if not isinstance(arrays, Mapping) or not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise CheckpointError(f"{path}: not {_DALLE}: it holds other things than tensors by name")
    return to_float32(dict(arrays))


def _collect_parameters(module: Any, prefix: str) -> dict[str, Any]:
    """Collect the parameters of a tree of stand-ins, named as by ``torch.nn.Module.state_dict``."""
    parameters = {}
    for name, value in module._parameters.items():
        if value is not None:
            parameters[prefix + name] = value
    for name, child in module._modules.items():
        parameters |= _collect_parameters(child, f"{prefix}{name}.")
    return parameters
