"""BEiT (Bao et al., 2022): predict the visual tokens of what is hidden.

Shapes: B images, N output tokens of D features, K hidden ones, a vocabulary of C visual tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ehm.backends.torch.models.masked import MaskedEncoder, MaskedSwin, MaskedVit
from ehm.backends.torch.models.patches import take
from ehm.config import Triple
from ehm.resample import bicubic

__all__ = ["BeitSwin", "BeitVit", "VisualTokens"]


class VisualTokens:
    """The visual token of each output cell, by a frozen ``tokenizer`` (:func:`ehm.backends.torch.models.dvae`).

    The tokenizer sees the images at the size at which its tokens are those of the output ``grid``: BEiT's 112 pixels
    for 14 x 14. ``mean`` and ``std`` are those that the images were normalised with.
    """

    def __init__(self, tokenizer: Any, grid: tuple[int, int], mean: Triple, std: Triple) -> None:
        self._tokenizer, self._grid, self._moments = tokenizer, grid, (mean, std)
        self._made: tuple[Tensor, ...] | None = None

    @property
    def vocabulary(self) -> int:
        """Number of visual tokens, C."""
        return int(self._tokenizer.vocabulary)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> (B, N) in [0, C), in float32."""
        with torch.autocast(images.device.type, enabled=False):
            if self._made is None:  # once: a small copy in every step would make the host wait for the device
                sizes = zip(self._grid, images.shape[2:], strict=True)
                resampling = [bicubic(cells * self._tokenizer.stride, pixels) for cells, pixels in sizes]
                moments = [np.array(values).reshape(1, 3, 1, 1) for values in self._moments]
                self._made = tuple(images.new_tensor(array.astype(np.float32)) for array in (*resampling, *moments))
            rows, columns, mean, std = self._made
            small = rows @ (images * std + mean) @ columns.T
            tokens: Tensor = self._tokenizer.tokens(small.clamp(0, 1))
        return tokens


class _TokenHead(nn.Module):
    """The head and the loss."""

    spec: Any

    def __init__(self, *args: Any, vocabulary: int) -> None:
        super().__init__(*args)
        self.lm_head = nn.Linear(self.spec.features, vocabulary)
        nn.init.trunc_normal_(self.lm_head.weight, std=0.02)
        nn.init.zeros_(self.lm_head.bias)

    def forward(
        self: Any,
        images: Tensor,
        visible: Tensor,
        masked: Tensor,
        restore: Tensor,
        tokens: Tensor | None = None,
        *,
        words: Tensor,
    ) -> Tensor:
        """Mean cross-entropy of the visual tokens ``words`` (B, N) of hidden cells, from indices (k * B, ...)."""
        encoder: MaskedEncoder = self
        tokens = encoder.embed(images) if tokens is None else tokens
        encoded = encoder.encode(tokens, restore >= visible.shape[1])
        logits = self.lm_head(take(encoded, masked))
        views = len(masked) // len(words)
        wanted = words.unsqueeze(1).expand(-1, views, -1).flatten(0, 1).gather(1, masked)
        return cross_entropy(logits.float().flatten(0, 1), wanted.flatten())


class BeitVit(_TokenHead, MaskedVit):  # type: ignore[misc]  # a loss, where timm's forward gives features
    """BEiT with a ViT."""


class BeitSwin(_TokenHead, MaskedSwin):  # type: ignore[misc]
    """BEiT with a Swin, whose output cells are as many as the visual tokens of a smaller image."""
