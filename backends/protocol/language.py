"""Learners of text, and of answers to questions about images.

Shapes: B images of H x W pixels, (h, w) patches, K latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.backends.protocol.tasks import TaskLearner

__all__ = ["Answerer", "Piece", "TextLearner"]


class Answerer(TaskLearner, Protocol):
    """An encoder and a resampler as the eyes of a frozen language model, which answers questions about images.

    Text crosses this protocol as text, as its tokens are the language model's. ``language`` (plain JSON) describes
    that model, which is no part of the state.
    """

    language: Mapping[str, Any]

    def train_step(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        answers: Sequence[str],
        lr: float,
        weight_decay: float,
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step on (B, H, W, 3) images, a prompt about each and what is to be said behind it.

        The metrics include ``loss``: the mean over all tokens of the batch's answers and the tokens that end them.
        """
        ...

    def answer(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[str]:
        """Return the likeliest text behind each prompt: (B, H, W, 3) -> B texts."""
        ...

    def locate_latents(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what each latent takes of each patch in the resampler's last layer: (B, H, W, 3) -> (B, K, h, w).

        Mean over heads; the rest, up to 1 in all, it takes of other tokens.
        """
        ...

    def keep_features(self, folder: Path, images: int) -> str:
        """Keep the tokens of up to ``images`` different images in a file in ``folder``, if there is room; say so.

        From now on an image passes through the encoder once, in training and answering together. The encoder is frozen,
        and its weights are loaded already.
        """
        ...

    def forget_features(self) -> None:
        """Remove what :meth:`keep_features` keeps, if anything."""
        ...


@dataclass(frozen=True)
class Piece:
    """A piece of a document: its text, and whether that is an answer, which ends with the token that ends a text."""

    text: str
    is_answer: bool = False


class TextLearner(Protocol):
    """A tiny language model in training on text alone, of so many ``parameters`` that knows so many ``words``."""

    parameters: int
    words: int

    def train_step(
        self, documents: Sequence[Sequence[Piece]], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step on documents; the metrics include ``loss``, a weighted mean over their tokens."""
        ...

    def answer(self, prompts: Sequence[str], most: int) -> list[str]:
        """Return the likeliest text behind each prompt, ``most`` tokens at most."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer into a folder in Hugging Face's layout."""
        ...
