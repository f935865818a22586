"""BEiT (Bao et al., 2022): predict the visual tokens of what is hidden.

Shapes: B images, N output tokens of D features, K hidden ones, a vocabulary of C visual tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ehm.backends.torch.models.masked import MaskedEncoder, MaskedSwin, MaskedVit
from ehm.backends.torch.models.patches import take
from ehm.backends.torch.models.tokenizers import Tokenizer
from ehm.config import Triple
from ehm.models.resample import bicubic

__all__ = ["BeitSwin", "BeitVit", "VisualTokens"]


class VisualTokens:
    """The visual token of each output cell, by a frozen ``tokenizer`` (:mod:`ehm.backends.torch.models.dvae`).

    The tokenizer sees images of ``image_size`` at the size at which its tokens are those of the output ``grid``: BEiT's
    112 pixels for 14 x 14. ``mean`` and ``std`` are those that the images were normalised with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        grid: tuple[int, int],
        image_size: tuple[int, int],
        mean: Triple,
        std: Triple,
        device: torch.device,
    ) -> None:
        self._tokenizer = tokenizer
        self._rows, self._columns = (
            torch.from_numpy(bicubic(cells * tokenizer.stride, pixels)).float().to(device)
            for cells, pixels in zip(grid, image_size, strict=True)
        )
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1).to(device) for values in (mean, std))

    @property
    def vocabulary(self) -> int:
        """Number of visual tokens, C."""
        return self._tokenizer.vocabulary

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> (B, N) in [0, C), in float32."""
        with torch.autocast(images.device.type, enabled=False):
            small = self._rows @ (images * self._std + self._mean) @ self._columns.T
            return self._tokenizer.tokens(small.clamp(0, 1))


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
