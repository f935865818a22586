"""A tiny language model in training on text alone, on one torch device.

Shapes: B documents, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import SupportsFloat

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from ehm.backends.base import ALONE, Piece, Processes
from ehm.backends.torch.engine.optim import make_param_groups
from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.step import Training
from ehm.backends.torch.language.frozen import FrozenLanguageModel
from ehm.backends.torch.language.stand_in import create_language_model, create_word_tokenizer
from ehm.config import LanguageTrainingConfig
from ehm.config.language import LanguageConfig

__all__ = ["TorchTextModel"]


class TorchTextModel:
    """Implements :class:`ehm.backends.base.TextLearner`; its words are those of ``texts``."""

    def __init__(
        self,
        config: LanguageTrainingConfig,
        texts: Iterable[str],
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self._tokenizer = create_word_tokenizer(texts, device)
        with seed_weights(config.run.seed):
            model = create_language_model(self._tokenizer, config.width, config.depth, config.heads, device)
        self.model = model.to(device)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.words = len(self._tokenizer)
        self._device = device
        self._other_weight = config.text.other_weight
        self._ids: dict[str, list[int]] = {}

        def create_optimizer(fused: bool | None) -> Optimizer:
            groups = make_param_groups(self.model.named_parameters())
            return torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas, fused=fused)

        self._training = Training(self.model, create_optimizer, config.optim, config.run, device, processes)

    def train_step(
        self, documents: Sequence[Sequence[Piece]], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.TextLearner.train_step`."""
        self.model.train()
        ids, weights = self._tokenize(documents)
        total = weights[:, 1:].sum()

        def compute_loss(rows: slice) -> Tensor:
            with self._training.autocast():
                logits = self._training.module(input_ids=ids[rows], use_cache=False).logits
            # no mask: padding lies on the right, where no word sees it
            losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[rows, 1:].flatten(), reduction="none")
            return (losses * weights[rows, 1:].flatten()).sum() / total

        return self._training.step(len(documents), compute_loss, lr, weight_decay, is_part=True)

    def answer(self, prompts: Sequence[str], most: int) -> list[str]:
        """See :meth:`ehm.backends.base.TextLearner.answer`."""
        self.model.eval()
        words = LanguageConfig(before="", after="", most=most)
        reader = FrozenLanguageModel(self.model, self._tokenizer, words, self._device)
        nothing_seen = torch.zeros(len(prompts), 0, reader.width, device=self._device)
        return reader.answer(nothing_seen, prompts)

    def save(self, folder: Path) -> None:
        """See :meth:`ehm.backends.base.TextLearner.save`."""
        self.model.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    def _tokenize(self, documents: Sequence[Sequence[Piece]]) -> tuple[Tensor, Tensor]:
        """Return the tokens of documents and their weights in the loss: (B, T) each, padded on the right."""
        rows: list[list[int]] = []
        weights: list[list[float]] = []
        for document in documents:
            row = [self._tokenizer.bos_token_id]
            weight = [0.0]
            for piece in document:
                ids = self._look_up(piece.text)
                if piece.is_answer:
                    ids = [*ids, self._tokenizer.eos_token_id]
                row += ids
                weight += [1.0 if piece.is_answer else self._other_weight] * len(ids)
            rows.append(row)
            weights.append(weight)
        length = max(map(len, rows))
        pad = self._tokenizer.pad_token_id
        padded = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
        padded_weights = torch.tensor([weight + [0.0] * (length - len(weight)) for weight in weights])
        return padded.to(self._device), padded_weights.to(self._device)

    def _look_up(self, text: str) -> list[int]:
        """Return the tokens of a text; the same few hundred occur over and over again."""
        if text not in self._ids:
            self._ids[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._ids[text]
