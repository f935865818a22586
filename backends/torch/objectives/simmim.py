"""SimMIM (Xie et al., 2022): predict the pixels of what is hidden by one linear layer.

Shapes: B images of C channels, N output tokens of D features, K hidden ones, P = C * stride**2 values of a cell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import linear

from ehm.backends.base import Reconstruction
from ehm.backends.reconstruction import reconstruct_patches
from ehm.backends.torch.models.masked_encoder import MaskedSwin, MaskedVit, encode_masked_images
from ehm.backends.torch.models.patches import gather_tokens, index_all_patches, patchify_by_channel
from ehm.backends.torch.objectives.base import TorchObjective

__all__ = ["SimmimSwin", "SimmimVit", "TorchSimmim"]


class PixelHead(nn.Module):
    """The head and the loss of SimMIM, over an encoder that a subclass adds."""

    spec: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        spec = self.spec
        # A 1 x 1 convolution in a Sequential, as in the published code, for the sake of its parameters' names. The
        # pixel shuffle behind it has no parameters, and targets in the order of the channels make it superfluous.
        self.decoder = nn.Sequential(nn.Conv2d(spec.features, spec.channels * spec.stride**2, kernel_size=1))

    def forward(
        self: Any, images: Tensor, visible: Tensor, masked: Tensor, restore: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """Compute the mean absolute error of hidden pixels of normalised (B, 3, H, W), from indices (k * B, ...)."""
        predicted = self.predict(images, visible, restore, masked, tokens)
        target = gather_tokens(patchify_by_channel(images, self.spec.stride), masked)
        return (predicted.float() - target).abs().mean()

    def predict(
        self: Any, images: Tensor, visible: Tensor, restore: Tensor, wanted: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """Predict the pixels of cells ``wanted`` (k * B, K), ordered channel, row, column: (k * B, K, P)."""
        encoded = encode_masked_images(self, images, visible, restore, tokens)
        head = self.decoder[0]
        # as a matrix product: on an NPU, convolutions would run in HF32
        return linear(gather_tokens(encoded, wanted), head.weight.flatten(1), head.bias)


class SimmimVit(PixelHead, MaskedVit):
    """SimMIM with a ViT."""


class SimmimSwin(PixelHead, MaskedSwin):  # type: ignore[misc]  # a loss, where timm's forward gives features
    """SimMIM with a Swin."""


MODELS: dict[str, Any] = {"vit": SimmimVit, "swin": SimmimSwin}
"""The model of each encoder family."""


class TorchSimmim(TorchObjective):
    """SimMIM on a torch device."""

    def build_model(self) -> Any:
        """See :meth:`TorchObjective.build_model`."""
        spec = self.config.spec
        return MODELS[spec.family](spec, self.config.model.drop_path)

    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """See :meth:`TorchObjective.reconstruct`."""
        predicted = model.predict(images, visible, restore, index_all_patches(restore))
        side = self.config.spec.stride
        by_channel = predicted.float().cpu().numpy().reshape(*restore.shape, self.config.spec.channels, side, side)
        data = self.config.data
        return reconstruct_patches(np.moveaxis(by_channel, 2, -1), self.config.image_size, data.mean, data.std)
