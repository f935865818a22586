"""SimMIM (Xie et al., 2022): predict the pixels of what is hidden by one linear layer.

Shapes: B images, N output tokens of D features, K hidden ones, P = 3 * stride**2 values of an output cell.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from ehm.backends.torch.models.masked import MaskedEncoder, MaskedSwin, MaskedVit
from ehm.backends.torch.models.patches import pixels_of, take

__all__ = ["SimmimSwin", "SimmimVit"]


class _PixelHead(nn.Module):
    """The head and the loss. ``decoder.0`` is a 1 x 1 convolution, as in the published code; its pixel shuffle needs no
    parameters, and the loss none of it: targets are ordered as the convolution's channels are.
    """

    spec: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        spec = self.spec
        self.decoder = nn.Sequential(nn.Conv2d(spec.features, 3 * spec.stride**2, kernel_size=1))

    def forward(
        self: Any, images: Tensor, visible: Tensor, masked: Tensor, restore: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """Mean absolute error of the hidden pixels of normalised (B, 3, H, W), from indices (k * B, ...) of cells."""
        encoder: MaskedEncoder = self
        tokens = encoder.embed(images) if tokens is None else tokens
        encoded = encoder.encode(tokens, restore >= visible.shape[1])
        head = self.decoder[0]
        predicted = linear(take(encoded, masked), head.weight.flatten(1), head.bias)
        target = take(pixels_of(images, self.spec.stride), masked)
        return (predicted.float() - target).abs().mean()


class SimmimVit(_PixelHead, MaskedVit):  # type: ignore[misc]  # a loss, where timm's forward gives features
    """SimMIM with a ViT."""


class SimmimSwin(_PixelHead, MaskedSwin):  # type: ignore[misc]
    """SimMIM with a Swin."""
