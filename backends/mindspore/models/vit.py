"""A Vision Transformer under a linear head, with timm's parameter names.

Shapes: B images, N patches, P tokens before them, L = P + N, D features, C classes.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ehm.backends.mindspore.models.attention_pool import AttentionPool
from ehm.backends.mindspore.models.blocks import run_blocks
from ehm.backends.mindspore.models.form_blocks import build_norm
from ehm.backends.mindspore.models.heads import build_classifier
from ehm.backends.mindspore.models.initial import init_truncated
from ehm.backends.mindspore.models.vit_parts import VitParts
from ehm.config.encoders import VitSpec
from ehm.models.weights import Pool

__all__ = ["VisionTransformer"]


class VisionTransformer(VitParts):
    """timm's ViT of ``spec``: normalised (B, 3, H, W) -> (B, classes), or pooled features (B, D) for 0 classes.

    The relative form is timm's ``Beit``, with a table of biases in every block, as BEiT and SimMIM fine-tune.
    ``pool`` is ``avg`` (mean of the patch tokens), ``token`` (the class token) or ``map`` (a learned query). As in
    MAE's fine-tuning the last norm follows an average, unless ``fc_norm`` is False. With ``probe`` a batch norm stands
    before the linear classifier. Weights are drawn from ``rng``.
    """

    fc_norm: Any

    def __init__(
        self,
        spec: VitSpec,
        rng: np.random.Generator,
        classes: int = 0,
        pool: Pool = "avg",
        fc_norm: bool | None = None,
        dtype: Any = ms.float32,
        probe: bool = False,
    ) -> None:
        norms_pooled = pool == "avg" if fc_norm is None else fc_norm
        super().__init__(spec, dtype, own_tables=True, last_norm=not norms_pooled)
        self.pool = pool
        self.classes = classes
        self.fc_norm = build_norm(spec.form, spec.width) if norms_pooled else None
        if pool == "map":
            self.attn_pool = AttentionPool(spec, dtype)
        if classes:
            self.head = build_classifier(spec.width, classes, dtype, probe)
        init_truncated(self, rng)

    def compute_tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute the tokens that leave the last block: (B, 3, H, W) -> (B, L, D)."""
        return self.run_stack(self.embed(images), None, None, keep)

    def pool_tokens(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """Pool and norm the tokens for the head: (B, L, D) -> (B, D).

        ``bias`` (1, 1, 1, L) is added to the scores of the learned query.
        """
        if self.fc_norm is not None:
            return self.fc_norm(self._pool(tokens, bias))
        return self._pool(self.norm(tokens), bias)

    def norm_patches(self, tokens: Tensor) -> Tensor:
        """Apply the last norm to the patch tokens: (B, L, D) -> (B, N, D)."""
        patches = tokens[:, self.prefix :]
        return self.norm(patches) if self.fc_norm is None else self.fc_norm(patches)

    def compute_canvas_tokens(
        self, patches: Tensor, resampling: Tensor | None, rotations: Tensor | None, bias: Tensor
    ) -> Tensor:
        """Compute the tokens that leave the last block from those of a canvas, (B, M, C * patch_size**2): (B, L, D).

        See :mod:`ehm.backends.mindspore.models.canvas`.
        """
        tokens = self.prepend_prefix(self.embed_patches(patches, resampling))
        return run_blocks(self.blocks, tokens, bias, rotations)

    def pool_images(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute the pooled features: (B, 3, H, W) -> (B, D)."""
        return self.pool_tokens(self.compute_tokens(images, keep))

    def construct(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute logits, or features without a head; ``keep`` (2 * depth, B, 1, 1) are drop path's factors."""
        features = self.pool_images(images, keep)
        return self.head(features) if self.classes else features

    def _pool(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        if self.pool == "avg":
            return tokens[:, self.prefix :].mean(axis=1)
        if self.pool == "map":
            # timm's VisionTransformer pools the patches, its Eva all tokens
            first = 0 if self.rotations is not None else self.prefix
            return self.attn_pool(tokens[:, first:], None if bias is None else bias[..., first:])
        return tokens[:, 0]
