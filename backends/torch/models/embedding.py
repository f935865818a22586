"""A descriptor of an image from the patch tokens of any encoder, and ArcFace, which trains it.

Shapes: B images, N patches, W features of a token, D of a descriptor, C classes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehm.backends.torch.models.loading import load_model
from ehm.config import ModelSource
from ehm.errors import ConfigError
from ehm.models.weights import LoadedModel, Weights

__all__ = ["ArcFace", "Embedding", "extract_all_tokens", "extract_patch_tokens", "load_encoder"]

_EPSILON = 1e-6


class Embedding(nn.Module):
    """A timm model without classifier, ``encoder``, under DELG's global descriptor (Cao et al., 2020, section 3.1).

    Normalised (B, 3, H, W) -> (B, D), rows of length 1: generalised mean of the patch tokens (GeM, Radenovic et al.,
    2019) with a learned ``power`` that begins with 3, a linear ``whitening`` to ``dim`` features, and division by the
    length. Without ``dim`` there is no whitening, and without ``gem`` the encoder's own pooling stands in the place of
    the mean. With ``classes`` the forward pass takes labels (B,) too and gives ArcFace's logits (B, C). GeM, ArcFace
    and lengths are float32 whatever the encoder computes in.

    ``forward_features`` and ``forward_head`` split the pass as timm's models split it.
    """

    def __init__(
        self,
        encoder: Any,
        dim: int | None = None,
        classes: int = 0,
        margin: float = 0.1,
        scale: float = 45.25,
        gem: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.power = nn.Parameter(torch.full((1,), 3.0)) if gem else None
        # of the tokens that this module gives, for what takes the patches out of them
        self.num_prefix_tokens = 0 if gem else encoder.num_prefix_tokens
        width = encoder.num_features
        self.whitening = nn.Identity() if dim is None else nn.Linear(width, dim)
        self.arcface = ArcFace(dim or width, classes, margin, scale) if classes else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute descriptors (B, D), or with ``labels`` logits (B, C)."""
        descriptors = self.forward_head(self.forward_features(images))
        if labels is None or self.arcface is None:
            return descriptors
        logits: Tensor = self.arcface(descriptors, labels)
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the patch tokens (B, N, W) behind the encoder's last norm; without GeM all of its tokens."""
        tokens: Tensor = self.encoder.forward_features(images)
        return tokens if self.power is None else extract_patch_tokens(self.encoder, tokens)

    def forward_head(self, tokens: Tensor, pre_logits: bool = True) -> Tensor:
        """(B, N, W) -> (B, D)."""
        if self.power is None:
            pooled = self.encoder.forward_head(tokens, pre_logits=True)
        with torch.autocast(tokens.device.type, enabled=False):
            if self.power is not None:
                # clamped, because a power of a negative number is not real
                pooled = tokens.float().clamp(min=_EPSILON).pow(self.power).mean(dim=1).pow(1 / self.power)
            return F.normalize(self.whitening(pooled.float()), dim=1)


def load_encoder(
    source: ModelSource, pool: Literal["gem", "token", "map"], weights: Weights | None = None
) -> LoadedModel:
    """Load the encoder of an :class:`Embedding` that pools as ``pool`` says; raises as ``load_model`` does."""
    if pool == "gem":
        return load_model(source, fc_norm=False, weights=weights)
    return load_model(source, pool=pool, fc_norm=False, weights=weights, repool=True)


class ArcFace(nn.Module):
    """Additive angular margin (Deng et al., 2019): cosines to a weight for each class, times a learned ``scale``.

    The angle to the right class is made larger by ``margin`` radians. Beyond pi that would turn the cosine around: the
    published code's continuation with a constant slope is taken there.
    """

    def __init__(self, width: int, classes: int, margin: float, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.xavier_uniform_(self.weight)
        self.scale = nn.Parameter(torch.full((1,), scale))
        self.margin = margin

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """(B, D) of length 1, (B,) -> logits (B, C)."""
        with torch.autocast(descriptors.device.type, enabled=False):
            cosine = F.linear(descriptors.float(), F.normalize(self.weight.float(), dim=1))
            right = cosine.gather(1, labels[:, None])
            sine = (1 - right.square()).clamp(min=1e-7).sqrt()  # the gradient of the root is infinite at 0
            with_margin = right * math.cos(self.margin) - sine * math.sin(self.margin)
            beyond_pi = right - math.sin(self.margin) * self.margin
            with_margin = torch.where(right > -math.cos(self.margin), with_margin, beyond_pi)
            return self.scale * cosine.scatter(1, labels[:, None], with_margin)


def extract_patch_tokens(model: Any, tokens: Any) -> Tensor:
    """Bring the output of timm's ``forward_features`` to patch tokens behind the last norm: -> (B, N, W).

    For a ViT these are its tokens without the class token, for other networks the cells of their map.
    """
    found = extract_all_tokens(model, tokens)
    if tokens.ndim == 4:
        return found
    return found[:, getattr(model, "num_prefix_tokens", 0) :]


def extract_all_tokens(model: Any, tokens: Any) -> Tensor:
    """Bring the output of timm's ``forward_features`` to all tokens behind the last norm: -> (B, L, W).

    For a ViT its class and register tokens are among them, for other networks they are the cells of their map. Raises
    ConfigError for a network without tokens.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim not in (3, 4):
        raise ConfigError(f"model: {type(model).__name__} gives no tokens of patches to describe an image by")
    if tokens.ndim == 4:
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"  # as timm's Swins
        return tokens.flatten(1, 2) if channels_last else tokens.flatten(2).mT
    if isinstance(getattr(model, "norm", None), nn.Identity):  # the norm stands behind an average
        normalised: Tensor = getattr(model, "fc_norm", model.norm)(tokens)
        return normalised
    return tokens
