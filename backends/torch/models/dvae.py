"""Load the tokenizer of BEiT's visual tokens: a run of ``ehm tokenizer train``, or DALL-E's published encoder.

``encoder.pkl`` is a pickled module of the package ``dall_e``. Reading it executes nothing: torch's restricted unpickler
makes tensors and containers, and an empty stand-in for each class of the module, which is known by its name alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ehm.backends.torch.engine.tensors import load_arrays
from ehm.backends.torch.models.dalle import DalleEncoder
from ehm.backends.torch.models.tokenizers import DiscreteVae, Tokenizer
from ehm.config import TokenizerConfig
from ehm.errors import CheckpointError, ConfigError
from ehm.models.opening import read_safetensors
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import open_checkpoint

__all__ = ["build_tokenizer", "load_tokenizer"]

_ABSENT = (
    "objective beit needs visual tokens: give DALL-E's encoder.pkl or a tokenizer of your own images "
    "(ehm tokenizer train --out runs/tokenizer) as model.tokenizer"
)
_COMMANDS = {"pretrain": "train", "classifier": "finetune"}
"""Commands whose names differ from the kind of checkpoint that they write."""
_CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
)
"""The classes that the published module consists of."""


def load_tokenizer(source: str | None, device: torch.device) -> Tokenizer:
    """Load the tokenizer that ``source`` names to ``device``, frozen.

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
        try:
            tokenizer: Tokenizer = DalleEncoder.from_arrays(_read_file(path))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    else:
        tokenizer = _load_own(path)
    return tokenizer.to(device).eval().requires_grad_(False)


def build_tokenizer(config: TokenizerConfig) -> DiscreteVae:
    """Build the network of ``config`` with fresh parameters."""
    return DiscreteVae(config.vocabulary, config.width, config.stride)


def _load_own(path: Path) -> DiscreteVae:
    opened = open_checkpoint(path)
    if opened.kind != "tokenizer":
        raise CheckpointError(f"{path}: a run of ehm {_COMMANDS.get(opened.kind, opened.kind)}, not of ehm tokenizer")
    tokenizer = build_tokenizer(TokenizerConfig.model_validate(opened.metadata["config"]))
    load_arrays(tokenizer, opened.model)
    return tokenizer


def _read_file(path: Path) -> Arrays:
    """Read arrays by name; raises CheckpointError if the file holds anything but tensors and known classes."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    stand_ins: list[Any] = [(_StandIn, name) for name in _CLASSES]
    try:
        with torch.serialization.safe_globals(stand_ins):
            # weights_only: torch's unpickler makes only the classes that are named here
            content = torch.load(path, map_location="cpu", weights_only=True)
        # a module, or a file of its tensors alone
        tensors = _collect_tensors(content) if isinstance(content, _StandIn) else dict(content)
        return {name: value.detach().float().numpy() for name, value in tensors.items()}
    except Exception as error:  # a file of unknown origin can fail in any way, at any opcode
        reason = _explain_failure(error)
        raise CheckpointError(
            f"neither DALL-E's encoder.pkl nor a file of its tensors, and nothing in it was executed: {reason}"
        ) from None


def _explain_failure(error: Exception) -> str:
    """Return what torch's unpickler stopped at, without its advice to load the file all the same."""
    found = re.search(
        r"(?:WeightsUnpickler error:\s*|Trying to load )(\S.*?)(?: was not an allowed global|\.? *$)",
        str(error),
        re.MULTILINE,
    )
    if found is None or found[1].startswith("Unsupported operand"):
        return "it is no file of torch's"
    return found[1]


class _StandIn:
    """A class without code that stands for one that the file names; its instances hold attributes alone."""


def _collect_tensors(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """Collect the parameters of a tree of stand-ins, named as by ``torch.nn.Module.state_dict``."""
    tensors: dict[str, Tensor] = {}
    for name, value in module._parameters.items():
        if value is not None:
            tensors[prefix + name] = value
    for name, child in module._modules.items():
        tensors |= _collect_tensors(child, f"{prefix}{name}.")
    return tensors
