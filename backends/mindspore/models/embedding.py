"""A descriptor of an image from the patch tokens of an encoder, and ArcFace, which trains it.

Shapes: B images, N patches, W features of a token, D of a descriptor, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.blocks import Dense

__all__ = ["LEAST_LENGTH", "ArcFace", "Embedding"]

_EPSILON = 1e-6
LEAST_LENGTH = 1e-12
"""Least length that a vector is divided by, as in torch's ``normalize``."""


class Embedding(nn.Cell):
    """An encoder without classifier under DELG's global descriptor (Cao et al., 2020, section 3.1).

    Normalised (B, 3, H, W) -> (B, D), rows of length 1: generalised mean of the patch tokens (GeM, Radenovic et al.,
    2019) with a learned ``power`` that begins with 3, a linear ``whitening`` to ``dim`` features, and division by the
    length. Without ``dim`` there is no whitening, and without ``gem`` the encoder's own pooling stands in the place of
    the mean. ``classes`` > 0 adds ArcFace. GeM, whitening, ArcFace and lengths are float32. New weights are drawn from
    ``rng``.
    """

    def __init__(
        self,
        encoder: Any,
        width: int,
        rng: np.random.Generator,
        dim: int | None = None,
        classes: int = 0,
        margin: float = 0.1,
        scale: float = 45.25,
        gem: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.has_power = gem
        if gem:
            self.power = Parameter(Tensor(np.full(1, 3.0, np.float32)))
        self.whitens = dim is not None
        if dim is not None:
            self.whitening = Dense(width, dim, ms.float32)
            limit = 1 / math.sqrt(width)  # torch's own range
            for parameter in self.whitening.get_parameters():
                parameter.set_data(Tensor(rng.uniform(-limit, limit, parameter.shape).astype(np.float32)))
        if classes:
            self.arcface = ArcFace(dim or width, classes, margin, scale, rng)

    def construct(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute descriptors (B, D); ``keep`` (2 * depth, B, 1, 1) are drop path's factors."""
        return self.describe_tokens(self.encoder.compute_tokens(images, keep))

    def describe_canvas(
        self, patches: Tensor, resampling: Tensor | None, rotations: Tensor | None, bias: Tensor, inside: Tensor
    ) -> Tensor:
        """Compute descriptors (B, D) of images on a canvas; see :mod:`ehm.backends.mindspore.models.canvas`."""
        tokens = self.encoder.compute_canvas_tokens(patches, resampling, rotations, bias)
        return self.describe_tokens(tokens, bias, inside)

    def describe_tokens(self, tokens: Tensor, bias: Tensor | None = None, inside: Tensor | None = None) -> Tensor:
        """Describe the tokens that leave the encoder's last block: (B, L, W) -> (B, D).

        On a canvas, ``bias`` (1, 1, 1, L) is very low for the patches beyond the image, and ``inside`` (N, 1) is 0.
        """
        if self.has_power:
            patches = ops.maximum(self.encoder.norm_patches(tokens).astype(ms.float32), Tensor(_EPSILON, ms.float32))
            powers = ops.pow(patches, self.power)
            mean = powers.mean(axis=1) if inside is None else (powers * inside).sum(axis=1) / inside.sum()
            pooled = ops.pow(mean, 1 / self.power)
        elif bias is None:
            pooled = self.encoder.pool_tokens(tokens).astype(ms.float32)
        else:
            pooled = self.encoder.pool_tokens(tokens, bias).astype(ms.float32)
        if self.whitens:
            pooled = self.whitening(pooled)
        return normalise(pooled)

    def compute_logits(self, images: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute ArcFace's logits (B, C) of images with ``labels`` (B,)."""
        return self.arcface(self.describe_tokens(self.encoder.compute_tokens(images, keep)), labels)


class ArcFace(nn.Cell):
    """Additive angular margin (Deng et al., 2019): cosines to a weight for each class, times a learned ``scale``.

    The angle to the right class is made larger by ``margin`` radians. Beyond pi that would turn the cosine around: the
    published code's continuation with a constant slope is taken there.
    """

    def __init__(self, width: int, classes: int, margin: float, scale: float, rng: np.random.Generator) -> None:
        super().__init__()
        limit = math.sqrt(6 / (width + classes))
        self.weight = Parameter(Tensor(rng.uniform(-limit, limit, (classes, width)).astype(np.float32)))
        self.scale = Parameter(Tensor(np.full(1, scale, np.float32)))
        self.classes = classes
        self.cosine_of_margin = math.cos(margin)
        self.sine_of_margin = math.sin(margin)
        self.beyond_pi = math.sin(margin) * margin

    def construct(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """(B, D) of length 1, (B,) -> logits (B, C)."""
        cosine = ops.MatMul(transpose_b=True)(descriptors, normalise(self.weight))
        is_right = (ops.arange(self.classes).astype(ms.int32) == labels.reshape((-1, 1))).astype(ms.float32)
        right = (cosine * is_right).sum(axis=1, keepdims=True)
        # the gradient of the root is infinite at 0
        sine = ops.sqrt(ops.maximum(1 - ops.square(right), Tensor(1e-7, ms.float32)))
        with_margin = right * self.cosine_of_margin - sine * self.sine_of_margin
        with_margin = ops.where(right > -self.cosine_of_margin, with_margin, right - self.beyond_pi)
        return self.scale * (cosine + is_right * (with_margin - right))


def normalise(rows: Tensor) -> Tensor:
    """Bring rows to length 1: (B, D) -> (B, D)."""
    length = ops.sqrt(ops.square(rows).sum(axis=1, keepdims=True))
    return rows / ops.maximum(length, Tensor(LEAST_LENGTH, ms.float32))
