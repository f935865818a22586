"""Masked autoencoder (He et al., 2022): an encoder of the visible patches, a light decoder of all of them.

Shapes: B images, N patches, V visible ones, D width, P = patch_size**2 * 3 values of a patch.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.base import Reconstruction
from ehm.backends.mindspore.models.blocks import (
    Block,
    Dense,
    LayerNorm,
    class_attention,
    mean_attention,
    patch_similarity,
    run_blocks,
)
from ehm.backends.mindspore.models.initial import init_xavier
from ehm.backends.mindspore.models.patches import PatchEmbed, gather_tokens, patchify, prepend_class_token, want_all
from ehm.backends.mindspore.objectives.base import MindsporeObjective
from ehm.backends.reconstruction import reconstruct_normalised_patches, reconstruct_patches
from ehm.config.encoders import VitSpec, sincos_positions

__all__ = ["MaskedAutoencoder", "MindsporeMae"]


class MaskedAutoencoder(nn.Cell):
    """MAE on a ViT of ``spec``, its weights drawn from ``rng``; ``construct`` gives the reconstruction loss."""

    def __init__(
        self,
        spec: VitSpec,
        rng: np.random.Generator,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix_loss: bool = True,
        dtype: Any = ms.float32,
    ) -> None:
        super().__init__()
        self.patch_size = spec.patch_size
        self.norm_pix_loss = norm_pix_loss

        def build_blocks(width: int, depth: int, heads: int) -> nn.CellList:
            return nn.CellList([Block(width, heads, spec.mlp_ratio, dtype) for _ in range(depth)])

        def build_positions(width: int) -> Parameter:
            return Parameter(Tensor(sincos_positions(width, spec.grid)), requires_grad=False)

        self.patch_embed = PatchEmbed(spec, dtype)
        self.cls_token = Parameter(Tensor(np.zeros((1, 1, spec.width), np.float32)))
        # fixed sine-cosine positions, which load from published files under these names
        self.pos_embed = build_positions(spec.width)
        self.blocks = build_blocks(spec.width, spec.depth, spec.heads)
        self.norm = LayerNorm(spec.width)

        self.decoder_embed = Dense(spec.width, decoder_width, dtype)
        self.mask_token = Parameter(Tensor(np.zeros((1, 1, decoder_width), np.float32)))
        self.decoder_pos_embed = build_positions(decoder_width)
        self.decoder_blocks = build_blocks(decoder_width, decoder_depth, decoder_heads)
        self.decoder_norm = LayerNorm(decoder_width)
        self.decoder_pred = Dense(decoder_width, spec.patch_size**2 * 3, dtype)
        init_xavier(self, rng)

    def compute_similarity(self, images: Tensor, blocks: int) -> Tensor:
        """Symmetrised mean attention of the first ``blocks`` blocks over all patches: (B, 3, H, W) -> (B, N, N)."""
        return patch_similarity(mean_attention(self.blocks, self._with_class_token(self.embed(images)), blocks))

    def compute_features(self, images: Tensor, blocks: int) -> Tensor:
        """Tokens behind the first ``blocks`` blocks over all patches: (B, 3, H, W) -> (B, N, D)."""
        return run_blocks(self.blocks[:blocks], self._with_class_token(self.embed(images)))[:, 1:]

    def pool_features(self, images: Tensor) -> Tensor:
        """Average over all patches what the last norm gives: (B, 3, H, W) -> (B, D), float32."""
        return self.norm(run_blocks(self.blocks, self._with_class_token(self.embed(images))))[:, 1:].mean(axis=1)

    def compute_saliency(self, images: Tensor) -> Tensor:
        """Compute the class token's attention to all patches in the last block: (B, 3, H, W) -> (B, N)."""
        return class_attention(self.blocks, self._with_class_token(self.embed(images)))

    def embed(self, images: Tensor) -> Tensor:
        """Embed normalised (B, 3, H, W) as patch tokens with their positions (B, N, D)."""
        return self.patch_embed(images) + self.pos_embed[:, 1:]

    def encode(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Encode the patches at indices ``visible``: (B, N, D), (k * B, V) -> (k * B, 1 + V, D)."""
        return self.norm(run_blocks(self.blocks, self._with_class_token(gather_tokens(tokens, visible))))

    def decode(self, encoded: Tensor, restore: Tensor, wanted: Tensor) -> Tensor:
        """Predict the patches at indices ``wanted``: (B, 1 + V, D) and (B, K) -> (B, K, P).

        ``restore`` (B, N) is each patch's place among the visible, then the masked ones.
        """
        tokens = self.decoder_embed(encoded)
        class_token = tokens[:, :1]
        visible_patches = tokens[:, 1:]
        batch, visible_count, width = visible_patches.shape
        masked_count = restore.shape[1] - visible_count
        mask_tokens = ops.broadcast_to(self.mask_token.astype(tokens.dtype), (batch, masked_count, width))
        patches = gather_tokens(ops.cat((visible_patches, mask_tokens), 1), restore)
        tokens = ops.cat((class_token, patches), 1) + self.decoder_pos_embed
        tokens = run_blocks(self.decoder_blocks, tokens)
        # the norm and the prediction of visible patches would be thrown away
        return self.decoder_pred(self.decoder_norm(gather_tokens(tokens[:, 1:], wanted)))

    def target(self, images: Tensor, masked: Tensor) -> Tensor:
        """Return the pixels of the patches at indices ``masked`` (k * B, K): (k * B, K, P), normalised if asked."""
        target = gather_tokens(patchify(images, self.patch_size), masked)
        if not self.norm_pix_loss:
            return target
        centred = target - target.mean(axis=-1, keep_dims=True)
        variance = ops.square(centred).sum(axis=-1, keepdims=True) / (target.shape[-1] - 1)
        return centred / ops.sqrt(variance + 1e-6)

    def construct(self, images: Tensor, visible: Tensor, masked: Tensor, restore: Tensor) -> Tensor:
        """Mean squared error of the masked patches of normalised (B, 3, H, W), from their indices (k * B, ...).

        The k masks of an image lie one after the other.
        """
        predicted = self.predict(images, visible, restore, masked)
        return ops.square(predicted.astype(ms.float32) - self.target(images, masked)).mean()

    def predict(self, images: Tensor, visible: Tensor, restore: Tensor, wanted: Tensor) -> Tensor:
        """Predict the patches at indices ``wanted`` (k * B, K), as :meth:`target` gives them: (k * B, K, P)."""
        return self.decode(self.encode(self.embed(images), visible), restore, wanted)

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        return prepend_class_token(tokens, self.cls_token + self.pos_embed[:, :1])


class MindsporeMae(MindsporeObjective):
    """MAE on a MindSpore target."""

    def build_model(self, dtype: Any) -> MaskedAutoencoder:
        """See :meth:`MindsporeObjective.build_model`."""
        model = self.config.model
        return MaskedAutoencoder(
            self.spec,
            self.random_numbers(),
            model.decoder_width,
            model.decoder_depth,
            model.decoder_heads,
            model.norm_pix_loss,
            dtype,
        )

    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """See :meth:`MindsporeObjective.reconstruct`."""
        predicted = model.predict(images, visible, restore, want_all(restore)).astype(ms.float32)
        side = self.spec.stride
        patches = predicted.asnumpy().reshape(*restore.shape, side, side, 3)
        data = self.config.data
        if self.config.model.norm_pix_loss:
            return reconstruct_normalised_patches(patches, images.asnumpy(), data.mean, data.std)
        return reconstruct_patches(patches, self.spec.image_size, data.mean, data.std)
