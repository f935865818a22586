"""SimMIM (Xie et al., 2022): predict the pixels of what is hidden by one linear layer.

Shapes: B images of C channels, N output tokens of D features, K hidden ones, k masks an image, P = C * stride**2 values
of an output cell.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ehm.backends.base import Reconstruction
from ehm.backends.mindspore.models.initial import init_masked
from ehm.backends.mindspore.models.masked_encoder import MaskedSwin, MaskedVit, encode_masked_images
from ehm.backends.mindspore.models.patches import Projection, gather_tokens, index_all_patches, patchify_by_channel
from ehm.backends.mindspore.objectives.base import MindsporeObjective
from ehm.backends.reconstruction import reconstruct_patches
from ehm.config.encoders import EncoderSpec

__all__ = ["MindsporeSimmim", "SimmimSwin", "SimmimVit"]


class PixelHead:
    """The head and the loss of SimMIM, over an encoder that a subclass adds."""

    stride: int
    decoder: nn.CellList

    def construct(
        self,
        images: Tensor,
        visible: Tensor,
        masked: Tensor,
        restore: Tensor,
        keep: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean absolute error of hidden pixels of normalised (B, 3, H, W), from indices (k * B, ...).

        The k masks of an image lie one after the other; for ``keep`` see :func:`encode_masked_images`. The encoder
        sees ``seen``, by default the images.
        """
        predicted = self.predict(images if seen is None else seen, visible, restore, masked, keep)
        target = gather_tokens(patchify_by_channel(images, self.stride), masked)
        return ops.abs(predicted.astype(ms.float32) - target).mean()

    def predict(
        self, images: Tensor, visible: Tensor, restore: Tensor, wanted: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Predict the pixels of cells ``wanted`` (k * B, K), ordered channel, row, column: (k * B, K, P)."""
        encoded = encode_masked_images(self, images, visible, restore, keep)
        return self.decoder[0](gather_tokens(encoded, wanted))


class SimmimVit(PixelHead, MaskedVit):
    """SimMIM with a ViT."""


class SimmimSwin(PixelHead, MaskedSwin):
    """SimMIM with a Swin."""


MODELS: dict[str, Any] = {"vit": SimmimVit, "swin": SimmimSwin}
"""The model of each encoder family."""


def build_simmim(spec: EncoderSpec, rng: np.random.Generator, dtype: Any = ms.float32) -> Any:
    """Return an untrained SimMIM on an encoder of ``spec``, whose weights are drawn from ``rng``."""
    model = MODELS[spec.family](spec, dtype)
    model.stride = spec.stride
    # A 1 x 1 convolution in a list, as in the published code, for the sake of its parameters' names. The pixel shuffle
    # behind it has no parameters, and targets in the order of the channels make it superfluous.
    model.decoder = nn.CellList([Projection(spec.channels * spec.stride**2, spec.features, 1, dtype)])
    init_masked(model, spec, rng)
    return model


class MindsporeSimmim(MindsporeObjective):
    """SimMIM on a MindSpore target."""

    def build_model(self, dtype: Any) -> Any:
        """See :meth:`MindsporeObjective.build_model`."""
        return build_simmim(self.spec, self.create_generator(), dtype)

    def compute_hidden_channels_loss(self, model: Any, images: Tensor, seen: Tensor, *rest: Tensor) -> Tensor:
        """See :meth:`MindsporeObjective.compute_hidden_channels_loss`."""
        loss: Tensor = model(images, *rest, seen=seen)
        return loss

    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """See :meth:`MindsporeObjective.reconstruct`."""
        predicted = model.predict(images, visible, restore, index_all_patches(restore)).astype(ms.float32)
        side = self.spec.stride
        by_channel = predicted.asnumpy().reshape(*restore.shape, self.spec.channels, side, side)
        data = self.config.data
        return reconstruct_patches(np.moveaxis(by_channel, 2, -1), self.spec.image_size, data.mean, data.std)
