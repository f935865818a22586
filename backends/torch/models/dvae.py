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
from ehm.errors import CheckpointError
from ehm.models.opening import read_safetensors
from ehm.models.tokenizer_weights import open_tokenizer
from ehm.storage.arrays import Arrays

__all__ = ["build_tokenizer", "load_tokenizer"]

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
    found = open_tokenizer(source, _read_file)
    if found.config is None:
        try:
            tokenizer: Tokenizer = DalleEncoder.from_arrays(found.arrays)
        except CheckpointError as error:
            raise CheckpointError(f"{found.origin}: {error}") from None
    else:
        tokenizer = build_tokenizer(found.config)
        load_arrays(tokenizer, found.arrays)
    return tokenizer.to(device).eval().requires_grad_(False)


def build_tokenizer(config: TokenizerConfig) -> DiscreteVae:
    """Build the network of ``config`` with fresh parameters."""
    return DiscreteVae(config.vocabulary, config.width, config.stride)


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
            f"{path}: neither DALL-E's encoder.pkl nor a file of its tensors, and nothing in it was executed: {reason}"
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
