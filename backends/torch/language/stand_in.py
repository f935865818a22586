"""A tiny Llama and a tokenizer of whole words, made from nothing: a stand-in for a real language model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ehm.backends.torch.language.opening import import_transformers

__all__ = ["create_language_model", "create_word_tokenizer"]

_UNKNOWN = "<unk>"
_BEGIN = "<s>"
_END = "</s>"
_PAD = "<pad>"
_LONGEST = 512
"""Most tokens that are read at once."""
_INIT_STD = 0.1
"""Standard deviation of the first weights: with transformers' own 0.02 so narrow a model learns nothing for long."""


def create_word_tokenizer(texts: Iterable[str], device: torch.device) -> Any:
    """Return a tokenizer whose words, in lower case, are those of ``texts``, and their punctuation."""
    transformers = import_transformers(device)
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words: set[str] = set()
    for text in texts:
        words |= {word for word, _ in splitter.pre_tokenize_str(text.lower())}
    vocabulary = [_UNKNOWN, _BEGIN, _END, _PAD, *sorted(words)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, _UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=_UNKNOWN, bos_token=_BEGIN, eos_token=_END, pad_token=_PAD
    )


def create_language_model(tokenizer: Any, width: int, depth: int, heads: int, device: torch.device) -> Any:
    """Return an untrained Llama for the words of ``tokenizer``, by torch's random numbers."""
    transformers = import_transformers(device)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=_LONGEST,
        initializer_range=_INIT_STD,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config)
