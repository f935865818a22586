"""SimMIM (Xie et al., 2022) with a ViT: predict the pixels of what is hidden by one linear layer.

Shapes: B images, N patches of D features, K hidden ones, k masks an image.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.base import Reconstruction
from ehm.backends.mindspore.models.blocks import (
    LayerNorm,
    class_attention,
    mean_attention,
    patch_similarity,
    run_blocks,
)
from ehm.backends.mindspore.models.initial import init_beit
from ehm.backends.mindspore.models.patches import (
    PatchEmbed,
    Projection,
    gather_tokens,
    patchify_by_channel,
    prepend_class_token,
    want_all,
)
from ehm.backends.mindspore.models.relative import RelativeBias, RelativeBlock
from ehm.backends.mindspore.objectives.base import MindsporeObjective
from ehm.backends.reconstruction import reconstruct_patches
from ehm.config.encoders import VitSpec

__all__ = ["MindsporeSimmim", "SimmimVit"]


class SimmimVit(nn.Cell):
    """SimMIM on a ViT of ``spec`` in the relative form, with one table of biases for all blocks.

    Its weights are drawn from ``rng``.
    """

    def __init__(self, spec: VitSpec, rng: np.random.Generator, dtype: Any = ms.float32) -> None:
        super().__init__()
        self.stride = spec.stride
        self.patch_embed = PatchEmbed(spec, dtype)
        self.cls_token = Parameter(Tensor(np.zeros((1, 1, spec.width), np.float32)))
        self.mask_token = Parameter(Tensor(np.zeros((1, 1, spec.width), np.float32)))
        # one for all blocks; fine-tuning has one in each
        self.rel_pos_bias = RelativeBias(spec.grid, spec.heads)
        self.blocks = nn.CellList(
            [RelativeBlock(spec.width, spec.heads, spec.mlp_ratio, dtype) for _ in range(spec.depth)]
        )
        self.norm = LayerNorm(spec.width)
        # A 1 x 1 convolution in a list, as in the published code, for the sake of its parameters' names. The pixel
        # shuffle behind it has no parameters, and targets in the order of the channels make it superfluous.
        self.decoder = nn.CellList([Projection(3 * spec.stride**2, spec.width, 1, dtype)])
        init_beit(self, rng)

    def compute_similarity(self, images: Tensor, blocks: int) -> Tensor:
        """Symmetrised mean attention of the first ``blocks`` blocks over all patches: (B, 3, H, W) -> (B, N, N)."""
        tokens = prepend_class_token(self.embed(images), self.cls_token)
        return patch_similarity(mean_attention(self.blocks, tokens, blocks, self.rel_pos_bias()))

    def compute_features(self, images: Tensor, blocks: int) -> Tensor:
        """Tokens behind the first ``blocks`` blocks over all patches: (B, 3, H, W) -> (B, N, D)."""
        tokens = prepend_class_token(self.embed(images), self.cls_token)
        return run_blocks(self.blocks[:blocks], tokens, self.rel_pos_bias())[:, 1:]

    def pool_features(self, images: Tensor) -> Tensor:
        """Average over all patches what the last norm gives: (B, 3, H, W) -> (B, D), float32."""
        tokens = prepend_class_token(self.embed(images), self.cls_token)
        return self.norm(run_blocks(self.blocks, tokens, self.rel_pos_bias()))[:, 1:].mean(axis=1)

    def compute_saliency(self, images: Tensor) -> Tensor:
        """Compute the class token's attention to all patches in the last block: (B, 3, H, W) -> (B, N)."""
        tokens = prepend_class_token(self.embed(images), self.cls_token)
        return class_attention(self.blocks, tokens, self.rel_pos_bias())

    def embed(self, images: Tensor) -> Tensor:
        """Embed normalised (B, 3, H, W) as patch tokens (B, N, D)."""
        return self.patch_embed(images).astype(ms.float32)

    def encode(self, tokens: Tensor, hidden: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode with the mask token in place of ``hidden`` patches (k * B, N): (B, N, D) -> (k * B, N, D).

        ``keep`` (2 * depth, k * B, 1, 1) are drop path's factors of every branch.
        """
        batch, patches, width = tokens.shape
        views = hidden.shape[0] // batch
        tokens = ops.broadcast_to(tokens.reshape((batch, 1, patches, width)), (batch, views, patches, width))
        covered = ops.where(hidden.reshape((-1, patches, 1)), self.mask_token, tokens.reshape((-1, patches, width)))
        encoded = run_blocks(self.blocks, prepend_class_token(covered, self.cls_token), self.rel_pos_bias(), keep)
        return self.norm(encoded)[:, 1:]

    def construct(
        self, images: Tensor, visible: Tensor, masked: Tensor, restore: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Mean absolute error of the hidden pixels of normalised (B, 3, H, W), from indices (k * B, ...) of patches.

        The k masks of an image lie one after the other; for ``keep`` see :meth:`encode`.
        """
        predicted = self.predict(images, visible, restore, masked, keep)
        target = gather_tokens(patchify_by_channel(images, self.stride), masked)
        return ops.abs(predicted.astype(ms.float32) - target).mean()

    def predict(
        self, images: Tensor, visible: Tensor, restore: Tensor, wanted: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Predict the pixels of patches ``wanted`` (k * B, K), ordered channel, row, column: (k * B, K, P)."""
        # the places of hidden patches come behind those of the visible ones
        is_hidden = restore >= visible.shape[1]
        encoded = self.encode(self.embed(images), is_hidden, keep)
        return self.decoder[0](gather_tokens(encoded, wanted))


class MindsporeSimmim(MindsporeObjective):
    """SimMIM on a MindSpore target."""

    def build_model(self, dtype: Any) -> SimmimVit:
        """See :meth:`MindsporeObjective.build_model`."""
        return SimmimVit(self.spec, self.random_numbers(), dtype)

    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """See :meth:`MindsporeObjective.reconstruct`."""
        predicted = model.predict(images, visible, restore, want_all(restore)).astype(ms.float32)
        side = self.spec.stride
        by_channel = predicted.asnumpy().reshape(*restore.shape, 3, side, side)
        data = self.config.data
        return reconstruct_patches(np.moveaxis(by_channel, 2, -1), self.spec.image_size, data.mean, data.std)
