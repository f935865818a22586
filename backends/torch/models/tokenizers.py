"""Visual tokenizers, and a small discrete VAE of ours (Rolfe, 2017; trained as in Ramesh et al., 2021, section 2.1).

Shapes: B images of H x W pixels in [0, 1], K codes of a vocabulary, (h, w) = (H, W) / stride, D features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, mse_loss

__all__ = ["DiscreteVae", "Tokenizer"]


class Tokenizer(nn.Module, ABC):
    """A network from images to visual tokens out of a ``vocabulary``, one for ``stride`` x ``stride`` pixels."""

    vocabulary: int
    stride: int

    @abstractmethod
    def compute_logits(self, images: Tensor) -> Tensor:
        """Compute how well each code suits each place: (B, 3, H, W) -> (B, K, h, w)."""

    @torch.no_grad()
    def compute_tokens(self, images: Tensor) -> Tensor:
        """Return the best code of each place, row by row: (B, 3, H, W) in [0, 1] -> (B, h * w) int64.

        It computes in float32 whatever the caller computes in, so that images have the same tokens in every run. Raises
        ValueError if H or W is not a multiple of ``stride``.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images of {height} x {width} pixels: not multiples of the tokenizer's {self.stride}")
        # two codes that suit a place almost equally would change places by rounding
        with torch.autocast(images.device.type, enabled=False):
            return self.compute_logits(images.float()).argmax(dim=1).flatten(1)


class DiscreteVae(Tokenizer):
    """A convolutional encoder to logits of ``vocabulary`` codes, a codebook (K, D), and a decoder back to pixels.

    ``stride`` is a power of two. ``width`` D is the number of channels at that stride; half the stride, half of them.
    In evaluation mode an image has the same tokens in any batch.
    """

    def __init__(self, vocabulary: int, width: int, stride: int = 8) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.stride = stride
        stages = stride.bit_length() - 1  # the logarithm of a power of two
        channels = [3, *(width >> (stages - 1 - stage) for stage in range(stages))]
        logits = nn.Conv2d(width, vocabulary, 1)
        # logits large enough to stand out from the Gumbel noise
        nn.init.normal_(logits.weight, std=4 / width**0.5)
        self.encoder = nn.Sequential(
            *_build_stages(channels, nn.Conv2d),
            _Residual(width),
            _Residual(width),
            nn.ReLU(),
            # takes off what all places have in common, which would give them all one code otherwise
            nn.BatchNorm2d(width, affine=False),
            logits,
        )
        self.codebook = nn.Parameter(torch.randn(vocabulary, width))
        self.decoder = nn.Sequential(
            _Residual(width), _Residual(width), *_build_stages(channels[::-1], nn.ConvTranspose2d)
        )

    def compute_logits(self, images: Tensor) -> Tensor:
        """See :meth:`Tokenizer.compute_logits`."""
        logits: Tensor = self.encoder(2 * images - 1)
        return logits

    def forward(self, images: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct (B, 3, H, W) images through relaxed codes: the two terms of the loss, and the tokens (B, h * w).

        The first term is the mean squared error of the pixels (DALL-E has a logit-Laplace likelihood instead). The
        second is KL(q || uniform) in nats, with q the mean distribution of codes over images and places. It is the part
        of the ELBO's divergence that measures how unevenly codes are used, without the part that measures how certain
        the code of each place is (Hoffman and Johnson, "ELBO surgery", 2016). Codes are Gumbel-softmax samples of
        ``temperature`` (Jang et al., 2017), a scalar; their noise is torch's own random numbers, on the device of
        ``images``.
        """
        logits = self.compute_logits(images).float()
        noise = -torch.empty_like(logits).exponential_().log()
        samples = ((logits + noise) / temperature).softmax(dim=1)
        features = torch.einsum("bkhw,kd->bdhw", samples, self.codebook)
        error = mse_loss(self._decode_features(features).float(), images)
        q = logits.softmax(dim=1).mean(dim=(0, 2, 3))
        divergence = (q * (self.vocabulary * q).clamp_min(1e-12).log()).sum()
        return error, divergence, logits.detach().argmax(dim=1).flatten(1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct (B, 3, H, W) images from their tokens: images of that shape in [0, 1], and the tokens."""
        height = images.shape[-2] // self.stride
        width = images.shape[-1] // self.stride
        tokens = self.compute_tokens(images)
        return self.decode_tokens(tokens, (height, width)), tokens

    @torch.no_grad()
    def decode_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode tokens (B, h * w) of a ``grid`` = (h, w) to images (B, 3, H, W) in [0, 1]."""
        features = embedding(tokens, self.codebook).unflatten(1, grid).permute(0, 3, 1, 2)
        return self._decode_features(features).clamp(0, 1)

    def _decode_features(self, features: Tensor) -> Tensor:
        """Decode features of codes (B, D, h, w) to images (B, 3, H, W)."""
        decoded: Tensor = self.decoder(features)
        return (decoded + 1) / 2


class _Residual(nn.Module):
    """A residual block of two convolutions: (B, D, h, w) -> (B, D, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the path to ``x``."""
        refined: Tensor = x + self.path(x)
        return refined


def _build_stages(channels: list[int], convolution: type[nn.Conv2d] | type[nn.ConvTranspose2d]) -> Iterator[nn.Module]:
    """Yield convolutions that halve or double height and width, with ReLUs between them."""
    for stage, (before, after) in enumerate(pairwise(channels)):
        if stage:
            yield nn.ReLU()
        yield convolution(before, after, kernel_size=4, stride=2, padding=1)
