"""Masked autoencoder (He et al., 2022): an encoder of the visible patches, a light decoder of all of them.

Encoder names are timm's, decoder names those of the published checkpoints, so that both load without renaming.
Shapes: B images of C channels, N patches, K masked ones, P = patch_size**2 * C values of a patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ehm.backends.base import Reconstruction
from ehm.backends.reconstruction import reconstruct_normalised_patches, reconstruct_patches
from ehm.backends.torch.models.patches import gather_tokens, index_all_patches, patchify
from ehm.backends.torch.models.visible_decoder import VisibleDecoder
from ehm.backends.torch.objectives.base import TorchObjective
from ehm.config.encoders import VitSpec

__all__ = ["MaskedAutoencoder", "TorchMae"]


class MaskedAutoencoder(VisibleDecoder):
    """MAE on a ViT of ``spec``; ``forward`` gives the reconstruction loss of the masked patches."""

    def __init__(
        self,
        spec: VitSpec,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix_loss: bool = True,
    ) -> None:
        super().__init__(spec, decoder_width, decoder_depth, decoder_heads)
        self.norm_pix_loss = norm_pix_loss
        self.decoder_pred = nn.Linear(decoder_width, spec.patch_size**2 * spec.channels)
        self.init_weights()

    def compute_target(self, images: Tensor, masked: Tensor) -> Tensor:
        """Return the pixels of the patches at indices ``masked`` (B, K): (B, K, P), normalised by patch if asked."""
        target = gather_tokens(patchify(images, self.spec.patch_size), masked)
        if not self.norm_pix_loss:
            return target
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        return (target - mean) / (variance + 1e-6) ** 0.5

    def forward(
        self, images: Tensor, visible: Tensor, masked: Tensor, restore: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """Compute the mean squared error of masked patches of normalised (B, 3, H, W), from indices (k * B, ...).

        ``tokens`` (B, N, D) spares the patch embedding if it has been computed. The k masks of an image lie one after
        the other.
        """
        predicted = self.predict(images, visible, restore, masked, tokens)
        # float32 from here on, because bfloat16 would round the small differences
        return (predicted.float() - self.compute_target(images, masked)).square().mean()

    def predict(
        self, images: Tensor, visible: Tensor, restore: Tensor, wanted: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """Predict the patches at indices ``wanted`` (k * B, K), as :meth:`compute_target` gives them: (k * B, K, P)."""
        if tokens is None:
            tokens = self.embed(images)
        predicted: Tensor = self.decoder_pred(self.decode(self.encode(tokens, visible), restore, wanted))
        return predicted


class TorchMae(TorchObjective):
    """MAE on a torch device."""

    def build_model(self) -> Any:
        """See :meth:`TorchObjective.build_model`."""
        spec = self.config.spec
        model = self.config.model
        assert isinstance(spec, VitSpec)  # the objective refuses other encoders when a configuration is read
        return MaskedAutoencoder(
            spec, model.decoder_width, model.decoder_depth, model.decoder_heads, model.norm_pix_loss
        )

    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """See :meth:`TorchObjective.reconstruct`."""
        predicted = model.predict(images, visible, restore, index_all_patches(restore))
        side = self.config.spec.stride
        patches = predicted.float().cpu().numpy().reshape(*restore.shape, side, side, self.config.spec.channels)
        data = self.config.data
        if self.config.model.norm_pix_loss:
            return reconstruct_normalised_patches(patches, images.cpu().numpy(), data.mean, data.std)
        return reconstruct_patches(patches, self.config.image_size, data.mean, data.std)
