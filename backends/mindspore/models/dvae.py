"""Load the tokenizer of BEiT's visual tokens: a run of ``ehm tokenizer train``, or DALL-E's published encoder."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np

from ehm.backends.mindspore.engine.tensors import load_arrays
from ehm.backends.mindspore.models.dalle import DalleEncoder
from ehm.backends.mindspore.models.tokenizers import DiscreteVae, Tokenizer
from ehm.config import TokenizerConfig
from ehm.errors import CheckpointError
from ehm.models.tokenizer_weights import infer_dalle_sizes, open_tokenizer

__all__ = ["build_tokenizer", "load_tokenizer"]


def load_tokenizer(source: str | None) -> Tokenizer:
    """Load the tokenizer that ``source`` names, frozen and in float32.

    For ``source`` and the errors see :func:`ehm.models.tokenizer_weights.open_tokenizer`.
    """
    found = open_tokenizer(source)
    if found.config is None:
        try:
            tokenizer: Tokenizer = DalleEncoder(infer_dalle_sizes(found.arrays))
            load_arrays(tokenizer, found.arrays)
        except CheckpointError as error:
            raise CheckpointError(f"{found.origin}: {error}") from None
    else:
        tokenizer = build_tokenizer(found.config)
        load_arrays(tokenizer, found.arrays)
    tokenizer.set_train(False)
    # its parameters are no part of the model that learns
    for parameter in tokenizer.get_parameters():
        parameter.requires_grad = False
    tokenizer.update_parameters_name("tokenizer.")  # names are unique within a graph
    return tokenizer


def build_tokenizer(config: TokenizerConfig, dtype: Any = ms.float32) -> DiscreteVae:
    """Build the network of ``config`` with parameters drawn from its seed."""
    rng = np.random.default_rng(config.run.seed)
    return DiscreteVae(config.vocabulary, config.width, config.stride, rng, dtype)
