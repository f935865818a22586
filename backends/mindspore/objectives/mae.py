"""Masked autoencoder (He et al., 2022): an encoder of the visible patches, a light decoder of all of them.

Shapes: B images of C channels, N patches, V visible ones, D width, P = patch_size**2 * C values of a patch.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ehm.backends.base import Reconstruction
from ehm.backends.mindspore.models.blocks import Dense
from ehm.backends.mindspore.models.initial import init_xavier
from ehm.backends.mindspore.models.patches import gather_tokens, index_all_patches, patchify
from ehm.backends.mindspore.models.visible_decoder import VisibleDecoder
from ehm.backends.mindspore.objectives.base import MindsporeObjective
from ehm.backends.reconstruction import reconstruct_normalised_patches, reconstruct_patches
from ehm.config import ModelConfig
from ehm.config.encoders import VitSpec

__all__ = ["MaskedAutoencoder", "MindsporeMae"]


class MaskedAutoencoder(VisibleDecoder):
    """A ViT of ``spec`` under a light decoder, whose weights are drawn from ``rng``."""

    def __init__(self, spec: VitSpec, model: ModelConfig, rng: np.random.Generator, dtype: Any = ms.float32) -> None:
        super().__init__(spec, model.decoder_width, model.decoder_depth, model.decoder_heads, dtype)
        self.patch_size = spec.patch_size
        self.norm_pix_loss = model.norm_pix_loss
        self.decoder_pred = Dense(model.decoder_width, spec.patch_size**2 * spec.channels, dtype)
        init_xavier(self, rng)

    def compute_target(self, images: Tensor, masked: Tensor) -> Tensor:
        """Return the pixels of the patches at indices ``masked`` (k * B, K): (k * B, K, P), normalised if asked."""
        target = gather_tokens(patchify(images, self.patch_size), masked)
        if not self.norm_pix_loss:
            return target
        centred = target - target.mean(axis=-1, keep_dims=True)
        variance = ops.square(centred).sum(axis=-1, keepdims=True) / (target.shape[-1] - 1)
        return centred / ops.sqrt(variance + 1e-6)

    def construct(
        self, images: Tensor, visible: Tensor, masked: Tensor, restore: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """Compute the mean squared error of masked patches of normalised (B, 3, H, W), from indices (k * B, ...).

        The k masks of an image lie one after the other. The encoder sees ``seen``, by default the images.
        """
        predicted = self.predict(images if seen is None else seen, visible, restore, masked)
        return ops.square(predicted.astype(ms.float32) - self.compute_target(images, masked)).mean()

    def predict(self, images: Tensor, visible: Tensor, restore: Tensor, wanted: Tensor) -> Tensor:
        """Predict the patches at indices ``wanted`` (k * B, K), as :meth:`compute_target` gives them: (k * B, K, P)."""
        return self.decoder_pred(self.decode(self.encode(self.embed(images), visible), restore, wanted))


class MindsporeMae(MindsporeObjective):
    """MAE on a MindSpore target."""

    def build_model(self, dtype: Any) -> MaskedAutoencoder:
        """See :meth:`MindsporeObjective.build_model`."""
        return MaskedAutoencoder(self.spec, self.config.model, self.create_generator(), dtype)

    def compute_hidden_channels_loss(self, model: Any, images: Tensor, seen: Tensor, *rest: Tensor) -> Tensor:
        """See :meth:`MindsporeObjective.compute_hidden_channels_loss`."""
        loss: Tensor = model(images, *rest, seen=seen)
        return loss

    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """See :meth:`MindsporeObjective.reconstruct`."""
        predicted = model.predict(images, visible, restore, index_all_patches(restore)).astype(ms.float32)
        side = self.spec.stride
        patches = predicted.asnumpy().reshape(*restore.shape, side, side, self.spec.channels)
        data = self.config.data
        if self.config.model.norm_pix_loss:
            return reconstruct_normalised_patches(patches, images.asnumpy(), data.mean, data.std)
        return reconstruct_patches(patches, self.spec.image_size, data.mean, data.std)
