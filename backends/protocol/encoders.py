"""Trained encoders that are only looked at, and the tokenizer whose codes BEiT predicts.

Shapes: B images of H x W pixels, N patches, (h, w) codes, D features, L = 1 + N tokens (the class token first).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.storage.arrays import LearnerState

if TYPE_CHECKING:
    from ehm.config.inputs import InputSpec

__all__ = ["Encoder", "TokenizerLearner"]


class TokenizerLearner(Protocol):
    """A discrete VAE in training; its codes become BEiT's visual tokens."""

    def train_step(
        self, images: NDArray[np.uint8], temperature: float, lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step on (B, H, W, 3) images, with codes relaxed at ``temperature``.

        The metrics are ``loss``, its two terms ``mse`` and ``kl``, and two figures on the codes of the latest
        ``run.log_every`` batches: ``codes_used`` in [0, 1] is the share of the vocabulary that occurs, ``perplexity``
        the exponential of their distribution's entropy, which is the vocabulary's size if all occur equally often.
        """
        ...

    def reconstruct_images(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Reconstruct (B, H, W, 3) images from their tokens: (B, H, W, 3) in [0, 1], and the tokens (B, h * w)."""
        ...

    def state(self) -> LearnerState:
        """See :meth:`Learner.state`."""
        ...

    def load(self, state: LearnerState) -> None:
        """See :meth:`Learner.load`."""
        ...


class Encoder(Protocol):
    """A trained encoder in evaluation mode, without gradient, for measurement and pictures.

    It takes images of ``image_size`` = (H, W) pixels, prepared as ``inputs`` says, and cuts them into ``grid`` = (down,
    across) patches; ``notes`` say what was loaded and what was not. Of the L tokens of a ViT the last N are patches,
    and the first is the class token if ``has_class_token``.
    """

    image_size: tuple[int, int]
    inputs: InputSpec
    grid: tuple[int, int]
    notes: tuple[str, ...]

    @property
    def has_class_token(self) -> bool:
        """True if the first token is the class token."""
        ...

    def compute_features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pool the tokens after the last norm: (B, H, W, 3) -> (B, D), as the encoder was created to."""
        ...

    def compute_similarity(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        """Compute the symmetrised mean attention of the first ``blocks`` blocks: (B, H, W, 3) -> (B, N, N)."""
        ...

    def compute_tokens(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        """Compute the patch tokens behind the first ``blocks`` blocks: (B, H, W, 3) -> (B, N, D)."""
        ...

    def compute_attention(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the softmax attention of the last block: (B, H, W, 3) -> (B, heads, L, L)."""
        ...

    def iterate_attention(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        """Yield the softmax attention of every block, one after the other: (B, heads, L, L) each."""
        ...
