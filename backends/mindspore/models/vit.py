"""A Vision Transformer under a linear head, with timm's parameter names.

Shapes: B images, N patches, L = 1 + N tokens, D features, C classes.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.blocks import Block, Dense, LayerNorm, run_blocks
from ehm.backends.mindspore.models.initial import init_truncated
from ehm.backends.mindspore.models.patches import PatchEmbed, prepend_class_token
from ehm.backends.mindspore.models.relative import RelativeBlock
from ehm.config.encoders import VitSpec
from ehm.models.weights import Pool

__all__ = ["VisionTransformer", "layer_of"]


class VisionTransformer(nn.Cell):
    """timm's ViT of ``spec``: normalised (B, 3, H, W) -> (B, classes), or pooled features (B, D) for 0 classes.

    The relative form is timm's ``Beit``, with a table of biases in every block, as BEiT and SimMIM fine-tune.
    ``pool`` is ``avg`` (mean of the patch tokens) or ``token`` (the class token). As in MAE's fine-tuning the last norm
    follows an average, unless ``fc_norm`` is False. With ``probe`` a batch norm stands before the linear classifier.
    Weights are drawn from ``rng``.
    """

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
        super().__init__()
        self.pool = pool
        self.classes = classes
        self.relative = spec.relative
        self.norms_pooled = pool == "avg" if fc_norm is None else fc_norm
        self.patch_embed = PatchEmbed(spec, dtype)
        self.cls_token = Parameter(Tensor(np.zeros((1, 1, spec.width), np.float32)))
        blocks: list[Block] = []
        for _ in range(spec.depth):
            if spec.relative:
                blocks.append(RelativeBlock(spec.width, spec.heads, spec.mlp_ratio, dtype, spec.grid))
            else:
                blocks.append(Block(spec.width, spec.heads, spec.mlp_ratio, dtype))
        if not spec.relative:
            self.pos_embed = Parameter(Tensor(np.zeros((1, spec.patches + 1, spec.width), np.float32)))
        self.blocks = nn.CellList(blocks)
        if self.norms_pooled:
            self.fc_norm = LayerNorm(spec.width)
        else:
            self.norm = LayerNorm(spec.width)
        if classes:
            head = Dense(spec.width, classes, dtype)
            if probe:
                self.head = nn.SequentialCell(Standardise(spec.width), head)
            else:
                self.head = head
        init_truncated(self, rng)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images as the tokens that enter the first block: (B, 3, H, W) -> (B, L, D)."""
        patches = self.patch_embed(images)
        if self.relative:
            return prepend_class_token(patches.astype(ms.float32), self.cls_token)
        return prepend_class_token(patches + self.pos_embed[:, 1:], self.cls_token + self.pos_embed[:, :1])

    def compute_tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute the tokens that leave the last block: (B, 3, H, W) -> (B, L, D)."""
        return run_blocks(self.blocks, self.embed(images), None, keep)

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """Pool and norm the tokens for the head: (B, L, D) -> (B, D)."""
        if self.norms_pooled:
            return self.fc_norm(self._pool(tokens))
        return self._pool(self.norm(tokens))

    def norm_patches(self, tokens: Tensor) -> Tensor:
        """Apply the last norm to the patch tokens: (B, L, D) -> (B, N, D)."""
        patches = tokens[:, 1:]
        return self.fc_norm(patches) if self.norms_pooled else self.norm(patches)

    def compute_features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute the pooled features: (B, 3, H, W) -> (B, D)."""
        return self.pool_tokens(self.compute_tokens(images, keep))

    def construct(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute logits, or features without a head; ``keep`` (2 * depth, B, 1, 1) are drop path's factors."""
        features = self.compute_features(images, keep)
        return self.head(features) if self.classes else features

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.pool == "avg":
            return tokens[:, 1:].mean(axis=1)
        return tokens[:, 0]


class Standardise(nn.Cell):
    """Batch norm without scale and offset, as in MAE's linear probe: (B, D) -> (B, D), in float32.

    In training it takes the moments of the batch, which the running ones approach by a tenth; in evaluation it takes
    the running ones.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.running_mean = Parameter(Tensor(np.zeros(width, np.float32)), requires_grad=False)
        self.running_var = Parameter(Tensor(np.ones(width, np.float32)), requires_grad=False)
        self.num_batches_tracked = Parameter(Tensor(0, ms.int64), requires_grad=False)

    def construct(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        x = x.astype(ms.float32)
        mean = self.running_mean
        variance = self.running_var
        if self.training:
            mean = x.mean(axis=0)
            variance = ops.square(x - mean).mean(axis=0)
            # running moments are unbiased, those of the batch are not, as in torch
            unbiased = variance * (x.shape[0] / max(x.shape[0] - 1, 1))
            ops.assign(self.running_mean, self.running_mean * 0.9 + ops.stop_gradient(mean) * 0.1)
            ops.assign(self.running_var, self.running_var * 0.9 + ops.stop_gradient(unbiased) * 0.1)
            ops.assign_add(self.num_batches_tracked, 1)
        return (x - mean) / ops.sqrt(variance + 1e-6)


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a parameter as timm counts: the embedding (0), the blocks, the head.

    The last norm belongs to the last block, a norm behind the average to the head.
    """
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    if name.startswith("norm."):
        return depth
    if name.startswith(("fc_norm.", "head.")):
        return depth + 1
    return 0
