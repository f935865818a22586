"""A frozen language model that reads visual tokens: the loss of an answer, and greedy answers.

Shapes: B images, K visual tokens, W features of the language model, T tokens behind them, S tokens in all, V words of
the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ehm.backends.torch.language.opening import import_transformers, open_language_model
from ehm.backends.torch.language.prompts import PromptTokenizer, Tail
from ehm.config.language import LanguageConfig
from ehm.errors import ConfigError
from ehm.models.language_folder import find_language_folder

__all__ = ["FrozenLanguageModel"]


class FrozenLanguageModel:
    """A language model whose weights do not change here; gradients pass through it to the visual tokens.

    ``width`` is that of its embedded tokens. With ``recomputes`` its layers compute their activations again in the
    backward pass.
    """

    def __init__(
        self, model: Any, tokenizer: Any, config: LanguageConfig, device: torch.device, recomputes: bool = False
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._transformers = import_transformers(device)
        # a folder's own settings, such as a temperature, are for chatting
        model.generation_config = _make_greedy(self._transformers, model, tokenizer)
        self._device = device
        self._config = config
        self._prompts = PromptTokenizer(tokenizer, config)
        self._embedding: Any = model.get_input_embeddings()
        self.width: int = self._embedding.weight.shape[1]
        self._head_ids = torch.tensor([self._prompts.tokenize_head()], device=device)
        self._stops = self._find_stops()
        self._adds_nothing_to_logits = self._compare_logits()
        if recomputes:
            self._recompute_layers()

    @classmethod
    def open(
        cls, config: LanguageConfig, device: torch.device, recomputes: bool = False
    ) -> tuple[FrozenLanguageModel, dict[str, Any]]:
        """Open the model of ``language.source``; return it, and what a checkpoint keeps to know it again."""
        folder = find_language_folder(config.source)
        model, tokenizer = open_language_model(folder, config, device)
        opened = cls(model, tokenizer, config, device, recomputes)
        return opened, {**folder.describe(), "width": opened.width}

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that say which model answers."""
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        dtype = str(self.model.dtype).removeprefix("torch.")
        return (
            f"language model {self._config.source}: {type(self.model).__name__}, {millions:,.1f} million parameters, "
            f"frozen, {dtype}",
        )

    def count_answer_tokens(self, answers: Sequence[str]) -> list[int]:
        """Return the number of tokens that the loss of each answer is summed over, its end token included."""
        return [len(self._prompts.tokenize_answer(answer)) for answer in answers]

    def sum_losses(self, visual: Tensor, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Return the cross entropy summed over all tokens of all answers: (B, K, W) -> scalar, float32."""
        tail = self._prompts.tokenize_tail(prompts, answers)
        embedded = self._join(visual, tail)
        self._check_length(embedded.shape[1])
        # the token at each place is predicted from the place before it
        first = embedded.shape[1] - tail.ids.shape[1] - 1
        rows, columns = tail.is_answer.nonzero(as_tuple=True)
        targets = tail.ids[rows, columns].to(self._device)
        rows = rows.to(self._device)
        columns = columns.to(self._device) + first
        with torch.autocast(self._device.type, enabled=False):
            logits = self._compute_logits(embedded, rows, columns)
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    @torch.no_grad()
    def answer(self, visual: Tensor, prompts: Sequence[str]) -> list[str]:
        """Return the likeliest words behind each prompt, ``language.most`` tokens or a sentence: (B, K, W) -> texts."""
        most = self._config.most
        # on the left, so that all rows end with the last token of their prompt
        tail = self._prompts.tokenize_tail(prompts)
        embedded, mask = _shift_right(self._join(visual, tail), tail.mask.to(self._device))
        self._check_length(embedded.shape[1] + most)
        with torch.autocast(self._device.type, enabled=False):
            ids = self.model.generate(
                inputs_embeds=embedded,
                attention_mask=mask,
                max_new_tokens=most,
                stopping_criteria=self._transformers.StoppingCriteriaList([_SentenceEnd(self._stops)]),
            )
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    def embed_words(self, ids: Tensor) -> Tensor:
        """Return the embeddings of tokens: (..., ) -> (..., W)."""
        embedded: Tensor = self._embedding(ids)
        return embedded

    def _join(self, visual: Tensor, tail: Tail) -> Tensor:
        """Return embedded tokens, padded on the right: (B, S, W)."""
        head = self.embed_words(self._head_ids).expand(len(visual), -1, -1)
        words = self.embed_words(tail.ids.to(self._device))
        return torch.cat([head, visual.to(words.dtype), words], dim=1)

    def _compute_logits(self, embedded: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Compute the logits at the places (rows, columns) of tokens (B, S, W) padded on the right: -> (n, V).

        Those of other places are not computed: at 32,000 words they would take twenty times the memory. There is no
        mask, as no token sees the padding behind it, so that attention is plainly causal.
        """
        if not self._adds_nothing_to_logits:
            everywhere = self.model(inputs_embeds=embedded, use_cache=False).logits
            whole: Tensor = everywhere[rows, columns]
            return whole
        hidden = self.model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        logits: Tensor = self.model.get_output_embeddings()(hidden[rows, columns])
        return logits

    @torch.no_grad()
    def _compare_logits(self) -> bool:
        """Return whether the logits are the output layer of the last hidden state, and nothing besides.

        Some models scale or cap them. Tried rather than looked up, because each kind has a setting of its own for that.
        """
        if self.model.get_output_embeddings() is None or self.model.base_model is self.model:
            return False
        ids = torch.tensor([[self.tokenizer.eos_token_id, self._prompts.pad_id]], device=self._device)
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        if hidden.shape[-1] != self.model.get_output_embeddings().weight.shape[-1]:
            return False
        own = self.model.get_output_embeddings()(hidden)
        return torch.allclose(own.float(), self.model(input_ids=ids, use_cache=False).logits.float(), rtol=1e-3)

    def _find_stops(self) -> Tensor:
        """Return which tokens hold a full stop or a new line: (V,) bool."""
        size = max(len(self.tokenizer), self._embedding.weight.shape[0])
        stops = torch.zeros(size, dtype=torch.bool)
        for token, text in enumerate(self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])):
            stops[token] = "." in text or "\n" in text
        return stops.to(self._device)

    def _check_length(self, tokens: int) -> None:
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and tokens > most:
            raise ConfigError(
                f"language.source {self._config.source}: takes {most} tokens at most, and image, prompt and answer are "
                f"{tokens}; lower language.most or resampler.latents, or leave long questions out"
            )

    def _recompute_layers(self) -> None:
        """Keep no activations inside the layers; transformers' own switch for that works in training mode only."""
        count = self.model.config.num_hidden_layers
        for module in self.model.base_model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                for layer in module:
                    layer.forward = _Recomputed(layer.forward)


class _Recomputed:
    """The forward pass of a layer, computed again in the backward pass."""

    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():  # in generation, whose cache a layer changes
            return self._forward(*arguments, **options)
        # nothing is drawn at random in evaluation mode
        return checkpoint(self._forward, *arguments, use_reentrant=False, preserve_rng_state=False, **options)


class _SentenceEnd:
    """Ends a row behind a full stop or a new line that follows a word.

    One token later, because a full stop may be that of a number.
    """

    def __init__(self, stops: Tensor) -> None:
        self._stops = stops

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return which rows of new tokens (B, n) have ended: (B,) bool."""
        # the first token is no end: an answer may begin with a full stop
        ended: Tensor = self._stops[ids[:, 1:-1]].any(dim=1)
        return ended


def _make_greedy(transformers: ModuleType, model: Any, tokenizer: Any) -> Any:
    """Return the settings of greedy decoding, which ends with the tokens that end a text by tokenizer or model."""
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id}
    if own is not None:
        ends |= set(own) if isinstance(own, list) else {own}
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return transformers.GenerationConfig(do_sample=False, eos_token_id=sorted(ends), pad_token_id=pad)


def _shift_right(embedded: Tensor, tail_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of (B, S, W), which a mask (B, T) of the last tokens tells, to the left; return a mask too."""
    length = embedded.shape[1]
    padding = (1 - tail_mask).sum(dim=1, keepdim=True)
    places = torch.arange(length, device=embedded.device)[None]
    rows = torch.arange(len(embedded), device=embedded.device)[:, None]
    return embedded[rows, (places - padding) % length], (places >= padding).long()
