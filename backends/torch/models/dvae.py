"""Load the tokenizer of BEiT's visual tokens: a run of ``ehm tokenizer train``, or DALL-E's published encoder."""

from __future__ import annotations

import torch

from ehm.backends.torch.engine.tensors import load_arrays
from ehm.backends.torch.models.dalle import DalleEncoder
from ehm.backends.torch.models.tokenizers import DiscreteVae, Tokenizer
from ehm.config import TokenizerConfig
from ehm.errors import CheckpointError
from ehm.models.tokenizer_weights import open_tokenizer

__all__ = ["build_tokenizer", "load_tokenizer"]


def load_tokenizer(source: str | None, device: torch.device) -> Tokenizer:
    """Load the tokenizer that ``source`` names to ``device``, frozen.

    For ``source`` and the errors see :func:`ehm.models.tokenizer_weights.open_tokenizer`.
    """
    found = open_tokenizer(source)
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
