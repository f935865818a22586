"""Visual tokenizers, and the small discrete VAE that ``ehm tokenizer train`` trains, with torch's parameter names.

:mod:`ehm.backends.torch.models.tokenizers` says what is computed. Shapes: B images of H x W pixels in [0, 1], K codes
of a vocabulary, (h, w) = (H, W) / stride, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.heads import Standardise

__all__ = ["DiscreteVae", "Tokenizer"]

_EPSILON = 1e-5
"""Epsilon of the batch norm before the logits, which is torch's own."""


class Tokenizer(nn.Cell):
    """A network from images to visual tokens out of a ``vocabulary``, one for ``stride`` x ``stride`` pixels."""

    vocabulary: int
    stride: int

    def compute_logits(self, images: Tensor) -> Tensor:
        """Compute how well each code suits each place: (B, 3, H, W) -> (B, K, h, w)."""
        raise NotImplementedError

    def compute_tokens(self, images: Tensor) -> Tensor:
        """Return the best code of each place, row by row: (B, 3, H, W) in [0, 1] -> (B, h * w) int32."""
        logits = self.compute_logits(images)
        best = ops.argmax(logits, 1).astype(ms.int32)
        return best.reshape((logits.shape[0], -1))


class DiscreteVae(Tokenizer):
    """A convolutional encoder to logits of ``vocabulary`` codes, a codebook (K, D), and a decoder back to pixels.

    ``stride`` is a power of two. ``width`` D is the number of channels at that stride; half the stride, half of them.
    Convolutions and matrix products compute in ``dtype``. In evaluation mode an image has the same tokens in any batch.
    Weights are drawn from ``rng``.
    """

    def __init__(
        self, vocabulary: int, width: int, stride: int, rng: np.random.Generator, dtype: Any = ms.float32
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.stride = stride
        self.width = width
        self.dtype = dtype
        stages = stride.bit_length() - 1  # the logarithm of a power of two
        channels = [3, *(width >> (stages - 1 - stage) for stage in range(stages))]
        self.encoder = nn.SequentialCell(
            *_build_stages(channels, _Convolution, dtype),
            _Residual(width, dtype),
            _Residual(width, dtype),
            nn.ReLU(),
            # takes off what all places have in common, which would give them all one code otherwise
            Standardise(width, _EPSILON),
            _Convolution(width, vocabulary, 1, dtype=dtype),
        )
        self.codebook = Parameter(Tensor(rng.normal(size=(vocabulary, width)).astype(np.float32)))
        self.decoder = nn.SequentialCell(
            _Residual(width, dtype),
            _Residual(width, dtype),
            *_build_stages(channels[::-1], _TransposedConvolution, dtype),
        )
        self._draw_weights(rng)

    def compute_logits(self, images: Tensor) -> Tensor:
        """See :meth:`Tokenizer.compute_logits`."""
        return self.encoder(2 * images - 1)

    def construct(self, images: Tensor, temperature: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct (B, 3, H, W) images through relaxed codes: the two terms of the loss, and the tokens (B, h * w).

        The terms are the mean squared error of the pixels, and KL(q || uniform) in nats, with q the mean distribution
        of codes over images and places. Codes are Gumbel-softmax samples of ``temperature``, a scalar, by Gumbel
        ``noise`` (B, K, h, w).
        """
        logits = self.compute_logits(images).astype(ms.float32)
        batch, codes, height, width = logits.shape
        samples = ops.softmax((logits + noise) / temperature, axis=1)
        places = samples.reshape((batch, codes, height * width)).swapaxes(1, 2)
        rows = places.reshape((-1, codes)).astype(self.dtype)
        features = ops.MatMul()(rows, self.codebook.astype(self.dtype))
        features = features.reshape((batch, height, width, self.width)).transpose((0, 3, 1, 2))
        error = ops.square(self._decode_features(features).astype(ms.float32) - images).mean()
        q = ops.softmax(logits, axis=1).mean(axis=(0, 2, 3))
        divergence = (q * ops.log(ops.maximum(self.vocabulary * q, 1e-12))).sum()
        tokens = ops.argmax(ops.stop_gradient(logits), 1).astype(ms.int32)
        return error, divergence, tokens.reshape((batch, -1))

    def decode_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode tokens (B, h * w) of a ``grid`` = (h, w) to images (B, 3, H, W) in [0, 1]."""
        features = ops.gather(self.codebook, tokens.reshape((-1,)), 0).reshape((tokens.shape[0], *grid, self.width))
        return ops.clamp(self._decode_features(features.transpose((0, 3, 1, 2))).astype(ms.float32), 0, 1)

    def _decode_features(self, features: Tensor) -> Tensor:
        """Decode features of codes (B, D, h, w) to images (B, 3, H, W)."""
        return (self.decoder(features) + 1) / 2

    def _draw_weights(self, rng: np.random.Generator) -> None:
        """Draw convolutions in torch's own range, but logits large enough to stand out from the Gumbel noise."""
        own = dict(self.parameters_and_names())
        logits = f"encoder.{len(self.encoder) - 1}.weight"
        for name, parameter in own.items():
            if name == logits:
                drawn = rng.normal(0, 4 / self.width**0.5, parameter.shape)
            elif name.endswith((".weight", ".bias")):
                weight = own[f"{name.rpartition('.')[0]}.weight"]
                limit = 1 / np.sqrt(np.prod(weight.shape[1:]))
                drawn = rng.uniform(-limit, limit, parameter.shape)
            else:
                continue
            parameter.set_data(Tensor(drawn.astype(np.float32)))


class _Convolution(nn.Cell):
    """A convolution in ``dtype``, with torch's names and shapes of parameters: (B, I, h, w) -> (B, O, h', w')."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, dtype: Any = ms.float32
    ) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((outputs, inputs, kernel, kernel), np.float32)))
        self.bias = Parameter(Tensor(np.zeros(outputs, np.float32)))
        self.convolve = ops.Conv2D(outputs, kernel, pad_mode="pad", pad=padding, stride=stride)
        self.dtype = dtype

    def construct(self, x: Tensor) -> Tensor:
        """(B, I, h, w) -> (B, O, h', w')."""
        convolved = self.convolve(x.astype(self.dtype), self.weight.astype(self.dtype))
        return convolved + self.bias.astype(self.dtype).reshape((1, -1, 1, 1))


class _TransposedConvolution(nn.Cell):
    """A transposed convolution in ``dtype`` that doubles height and width, its kernel 4 wide, with torch's names."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dtype: Any) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((inputs, outputs, kernel, kernel), np.float32)))
        self.bias = Parameter(Tensor(np.zeros(outputs, np.float32)))
        self.convolve = ops.Conv2DTranspose(inputs, kernel, pad_mode="pad", pad=padding, stride=stride)
        self.outputs = outputs
        self.factor = stride
        self.dtype = dtype

    def construct(self, x: Tensor) -> Tensor:
        """(B, I, h, w) -> (B, O, 2 * h, 2 * w)."""
        batch, _, height, width = x.shape
        shape = (batch, self.outputs, height * self.factor, width * self.factor)
        spread = self.convolve(x.astype(self.dtype), self.weight.astype(self.dtype), shape)
        return spread + self.bias.astype(self.dtype).reshape((1, -1, 1, 1))


class _Residual(nn.Cell):
    """A residual block of two convolutions: (B, D, h, w) -> (B, D, h, w)."""

    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        self.path = nn.SequentialCell(
            nn.ReLU(),
            _Convolution(width, width, 3, padding=1, dtype=dtype),
            nn.ReLU(),
            _Convolution(width, width, 1, dtype=dtype),
        )

    def construct(self, x: Tensor) -> Tensor:
        """Add the path to ``x``."""
        return x + self.path(x)


def _build_stages(
    channels: list[int], convolution: type[_Convolution] | type[_TransposedConvolution], dtype: Any
) -> Iterator[nn.Cell]:
    """Yield convolutions that halve or double height and width, with ReLUs between them."""
    for stage, (before, after) in enumerate(pairwise(channels)):
        if stage:
            yield nn.ReLU()
        yield convolution(before, after, kernel=4, stride=2, padding=1, dtype=dtype)
