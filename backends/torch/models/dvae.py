"""Visual tokenizers, and a small discrete VAE of ours (Rolfe, 2017; trained as in Ramesh et al., 2021, section 2.1).

Shapes: B images of H x W pixels in [0, 1], K codes of a vocabulary, (h, w) = (H, W) / stride, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax, mse_loss, one_hot

__all__ = ["DiscreteVae", "Residual", "Tokenizer"]


class Tokenizer(nn.Module):
    """Images -> visual tokens, what BEiT predicts: ``vocabulary`` of them, one for ``stride`` x ``stride`` pixels."""

    vocabulary: int
    stride: int

    def logits(self, images: Tensor) -> Tensor:
        """How well each code suits each place: (B, 3, H, W) -> (B, K, h, w)."""
        raise NotImplementedError

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """The best code of each place, row by row: (B, 3, H, W) in [0, 1] -> (B, h * w) int64.

        In float32 whatever the caller computes in, so that images have the same tokens in every run. Raises ValueError
        where H or W is not a multiple of ``stride``.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images of {height} x {width} pixels: not multiples of the tokenizer's {self.stride}")
        with torch.autocast(images.device.type, enabled=False):
            return self.logits(images.float()).argmax(dim=1).flatten(1)


class DiscreteVae(Tokenizer):
    """A convolutional encoder to logits of ``vocabulary`` codes, a codebook (K, D), and a decoder back to pixels.

    ``stride`` is a power of two. ``width`` D is the number of channels at that stride; each halving of it halves them.
    """

    def __init__(self, vocabulary: int, width: int, stride: int = 8) -> None:
        super().__init__()
        self.vocabulary, self.stride = vocabulary, stride
        stages = stride.bit_length() - 1
        channels = [3, *(width >> (stages - 1 - stage) for stage in range(stages))]
        self.encoder = nn.Sequential(
            *_stages(channels, nn.Conv2d), Residual(width), Residual(width), nn.ReLU(), nn.Conv2d(width, vocabulary, 1)
        )
        self.codebook = nn.Parameter(torch.randn(vocabulary, width))
        self.decoder = nn.Sequential(Residual(width), Residual(width), *_stages(channels[::-1], nn.ConvTranspose2d))

    def logits(self, images: Tensor) -> Tensor:
        """See :meth:`Tokenizer.logits`."""
        logits: Tensor = self.encoder(2 * images - 1)
        return logits

    def forward(self, images: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct (B, 3, H, W) images through relaxed codes: the two terms of the loss, and the tokens (B, h * w).

        The first term is the mean squared error of the pixels (where DALL-E has a logit-Laplace likelihood), the second
        the divergence KL(q || uniform) in nats, mean over places. Codes are Gumbel-softmax samples of ``temperature``
        (Jang et al., 2017), a scalar; their noise is torch's own random numbers, on the device of ``images``.
        """
        logits = self.logits(images).float()
        samples = gumbel_softmax(logits, temperature, dim=1)
        error = mse_loss(self._decode(samples).float(), images)
        log_q = logits.log_softmax(dim=1)
        divergence = math.log(self.vocabulary) + (log_q.exp() * log_q).sum(dim=1).mean()
        return error, divergence, logits.detach().argmax(dim=1).flatten(1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the tokens of (B, 3, H, W) images keep of them: images of that shape in [0, 1], and the tokens."""
        height, width = (side // self.stride for side in images.shape[-2:])
        tokens = self.tokens(images)
        codes = one_hot(tokens, self.vocabulary).float().unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return self._decode(codes).clamp(0, 1), tokens

    def _decode(self, codes: Tensor) -> Tensor:
        """Shares of codes (B, K, h, w) -> images (B, 3, H, W)."""
        decoded: Tensor = self.decoder(torch.einsum("bkhw,kd->bdhw", codes, self.codebook))
        return (decoded + 1) / 2


class Residual(nn.Module):
    """``x`` and two convolutions of it: (B, D, h, w) -> (B, D, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the path to ``x``."""
        refined: Tensor = x + self.path(x)
        return refined


def _stages(channels: list[int], convolution: type[nn.Conv2d] | type[nn.ConvTranspose2d]) -> Iterator[nn.Module]:
    """Convolutions that halve or double height and width, with ReLUs between them."""
    for stage, (before, after) in enumerate(pairwise(channels)):
        if stage:
            yield nn.ReLU()
        yield convolution(before, after, kernel_size=4, stride=2, padding=1)
