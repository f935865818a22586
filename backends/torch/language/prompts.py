"""The tokens around an image: words before it, and words, a prompt and an answer behind it.

Pieces are tokenized one by one, because a tokenizer may merge the end of one piece with the beginning of the next.

Shapes: B images, T tokens behind the visual ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ehm.config.language import LanguageConfig

__all__ = ["PromptTokenizer", "Tail"]

_IMAGE = "\ufffc"
"""The place of an image in a chat, which is cut there: a character that stands for an object in Unicode."""
_BLANK = "\u2581"
"""The sign by which SentencePiece writes a blank."""


@dataclass(frozen=True)
class Tail:
    """The tokens behind the visual ones: ``ids`` and ``mask`` (B, T) int64, 1 for tokens and 0 for padding.

    ``is_answer`` (B, T) are the tokens that a model learns to say: the answer and the end token.
    """

    ids: Tensor
    mask: Tensor
    is_answer: Tensor


class PromptTokenizer:
    """Turns words around an image into tokens, as ``config`` says."""

    def __init__(self, tokenizer: Any, config: LanguageConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self.pad_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # a chat template ends where an answer begins, and some tokenizers, as Llama's, put a blank before each text
        first_token = tokenizer.convert_ids_to_tokens(self._tokenize("a"))[0]
        has_own_blank = first_token.startswith(_BLANK)
        self._answer_prefix = "" if config.chat or has_own_blank else " "

    def tokenize_head(self) -> list[int]:
        """Return the tokens before an image, which are the same for all prompts."""
        if self._config.chat:
            return self._tokenize(self._split_chat("")[0])
        ids = self._tokenize(self._config.before)
        first = self._tokenizer.bos_token_id
        return ids if first is None else [first, *ids]

    def tokenize_tail(self, prompts: Sequence[str], answers: Sequence[str] | None = None) -> Tail:
        """Return the tokens behind the images of a batch: prompts, with ``answers`` too if there are any.

        Short rows are padded on the right.
        """
        rows = [self._tokenize_prompt(prompt) for prompt in prompts]
        answer_rows: list[list[int]] = [[] for _ in prompts]
        if answers is not None:
            answer_rows = [self.tokenize_answer(answer) for answer in answers]
        length = max(map(len, map(list.__add__, rows, answer_rows)))
        ids = torch.full((len(rows), length), self.pad_id)
        mask = torch.zeros(len(rows), length, dtype=torch.int64)
        is_answer = torch.zeros(len(rows), length, dtype=torch.bool)
        for index, (prompt, answer) in enumerate(zip(rows, answer_rows, strict=True)):
            own = len(prompt) + len(answer)
            ids[index, :own] = torch.tensor(prompt + answer)
            mask[index, :own] = 1
            is_answer[index, len(prompt) : own] = True
        return Tail(ids, mask, is_answer)

    def tokenize_answer(self, answer: str) -> list[int]:
        """Return the tokens of an answer behind a prompt, the end token included."""
        return [*self._tokenize(f"{self._answer_prefix}{answer}"), self._tokenizer.eos_token_id]

    def _tokenize_prompt(self, prompt: str) -> list[int]:
        if self._config.chat:
            return self._tokenize(self._split_chat(prompt)[1])
        # the words behind the image are a piece of their own, as in GVT
        return self._tokenize(self._config.after) + self._tokenize(prompt)

    def _split_chat(self, prompt: str) -> tuple[str, str]:
        """Return the words of a chat before the image, and those behind it up to the answer."""
        content = f"{self._config.before}{_IMAGE}{self._config.after}{prompt}"
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, _, behind = text.partition(_IMAGE)
        return before, behind

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
