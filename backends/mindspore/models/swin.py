"""Swin Transformers with timm's parameter names, and their attention between the cells of the output grid.

:mod:`ehm.backends.torch.models.swin` says what that attention is.

Shapes: B images, a map of h x w tokens of D features row by row, nW windows of T tokens, heads n, N cells of the output
grid, C classes.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.blocks import Attention, Block, Dense, LayerNorm, symmetrise
from ehm.backends.mindspore.models.heads import build_classifier
from ehm.backends.mindspore.models.initial import init_truncated
from ehm.backends.mindspore.models.patches import PatchEmbed
from ehm.backends.mindspore.models.relative import look_up_biases
from ehm.backends.mindspore.models.windows import cut_windows, join_windows, mark_owners
from ehm.config.encoders import SwinSpec, compute_relative_index
from ehm.models.weights import Pool
from ehm.models.windows import find_shift, forbid_borders

__all__ = ["SwinBlock", "SwinParts", "SwinTransformer"]

_EPSILON = 1e-5
"""Epsilon of a Swin's norms, which is torch's own."""


class WindowAttention(Attention):
    """Attention within windows, which are those of ``mask`` (nW, T, T) if some pairs must not see each other."""

    def __init__(
        self, width: int, heads: int, dtype: Any, window: tuple[int, int], mask: np.ndarray[Any, Any] | None
    ) -> None:
        super().__init__(width, heads, dtype)
        self.is_fused = False
        # without the class token, which a window does not have
        index = np.ascontiguousarray(compute_relative_index(window)[1:, 1:])
        rows = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_position_bias_table = Parameter(Tensor(np.zeros((rows, heads), np.float32)))
        self.index = Tensor(index)
        self.is_shifted = mask is not None
        if mask is not None:
            self.mask = Tensor(mask[:, None])

    def compute_probs(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute softmax attention in float32: (B * nW, n, T, d) twice -> (B * nW, n, T, T)."""
        scores = ops.BatchMatMul(transpose_b=True)(q * self.scale, k).astype(ms.float32)
        scores = scores + look_up_biases(self.relative_position_bias_table, self.index)
        if self.is_shifted:
            shape = scores.shape
            # the windows of an image lie one after the other
            scores = (scores.reshape((-1, self.mask.shape[0], *shape[1:])) + self.mask).reshape(shape)
        return ops.softmax(scores, axis=-1)

    def construct(self, x: Tensor, bias: Tensor | None = None, rotations: Tensor | None = None) -> Tensor:
        """(B * nW, T, D) -> (B * nW, T, D)."""
        q, k, v = self.split_heads(x)
        return self.mix_values(self.compute_probs(q, k), v)


class SwinBlock(Block):
    """The block at a ``place`` of a stage; every second one has its windows moved by half of their sides."""

    def __init__(self, spec: SwinSpec, stage: int, place: int, dtype: Any) -> None:
        window = spec.windows[stage]
        size = spec.measure_map(stage)
        shift = find_shift(spec, stage, place)
        width = spec.width << stage
        heads = spec.heads[stage]
        attn = WindowAttention(width, heads, dtype, window, forbid_borders(size, window, shift))
        super().__init__(width, heads, spec.mlp_ratio, dtype, attn, _EPSILON)
        self.map_size = size
        self.window = window
        self.shift = shift
        self.owners = Tensor(mark_owners(size, spec.grid, window, shift))
        self.tokens_per_cell = size[0] * size[1] / spec.patches

    def construct(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        rotations: Tensor | None = None,
        keep_attn: Tensor | None = None,
        keep_mlp: Tensor | None = None,
    ) -> Tensor:
        """(B, h * w, D) -> (B, h * w, D); see :meth:`Block.construct`."""
        mixed = join_windows(self.attn(self._cut(x)), self.map_size, self.window, self.shift)
        return self.finish_block(x, mixed, keep_attn, keep_mlp)

    def compute_cell_attention(self, x: Tensor) -> Tensor:
        """Compute the attention between output cells, mean over heads: (B, h * w, D) -> (B, N, N), float32.

        Entry (i, j) is the share of its attention that a token of cell i gives to cell j, averaged over the tokens of
        cell i.
        """
        q, k, _ = self.attn.split_heads(self._cut(x))
        probs = self.attn.compute_probs(q, k).mean(axis=1)  # (B * nW, T, T)
        windows, places, cells = self.owners.shape
        batch = probs.shape[0] // windows
        # as two matrix products, each of all images
        of_windows = probs.reshape((batch, windows, places, places)).swapaxes(0, 1)
        to_cells = ops.BatchMatMul()(of_windows.reshape((windows, batch * places, places)), self.owners)
        to_cells = to_cells.reshape((windows, batch, places, cells)).swapaxes(1, 2)
        owners = self.owners.reshape((windows * places, cells))
        total = ops.MatMul(transpose_a=True)(owners, to_cells.reshape((windows * places, batch * cells)))
        return total.reshape((cells, batch, cells)).swapaxes(0, 1) / self.tokens_per_cell

    def _cut(self, x: Tensor) -> Tensor:
        """Norm tokens and divide them into windows: (B, h * w, D) -> (B * nW, T, D)."""
        return cut_windows(self.norm1(x), self.map_size, self.window, self.shift)


class PatchMerging(nn.Cell):
    """Merging of 2 x 2 tokens of a map of ``size``: (B, h * w, D) -> (B, h * w / 4, 2 * D)."""

    def __init__(self, size: tuple[int, int], width: int, dtype: Any) -> None:
        super().__init__()
        self.map_size = size
        self.norm = LayerNorm(4 * width, _EPSILON)
        self.reduction = Dense(4 * width, 2 * width, dtype, bias=False)

    def construct(self, x: Tensor) -> Tensor:
        """(B, h * w, D) -> (B, h * w / 4, 2 * D), float32."""
        batch, _, width = x.shape
        height, across = self.map_size
        cells = x.reshape((batch, height // 2, 2, across // 2, 2, width)).transpose((0, 1, 3, 4, 2, 5))
        joined = self.norm(cells.reshape((batch, height * across // 4, 4 * width)))
        return self.reduction(joined).astype(ms.float32)


class SwinStage(nn.Cell):
    """The blocks of a stage; :class:`SwinParts` walks through them."""

    def __init__(self, spec: SwinSpec, stage: int, dtype: Any) -> None:
        super().__init__()
        if stage:
            self.downsample = PatchMerging(spec.measure_map(stage - 1), spec.width << (stage - 1), dtype)
        self.blocks = nn.CellList([SwinBlock(spec, stage, place, dtype) for place in range(spec.depths[stage])])


class SwinParts(nn.Cell):
    """The parts of a Swin of ``spec``, and the way of tokens through them."""

    def __init__(self, spec: SwinSpec, dtype: Any) -> None:
        super().__init__()
        self.grid = spec.grid
        self.patch_embed = PatchEmbed(
            spec.patch_size, spec.width, dtype, norm=LayerNorm(spec.width, _EPSILON), channels=spec.channels
        )
        self.layers = nn.CellList([SwinStage(spec, stage, dtype) for stage in range(len(spec.depths))])
        self.norm = LayerNorm(spec.features, _EPSILON)
        self.last_map = spec.measure_map(len(spec.depths) - 1)
        # the stage of each block, and its place there
        self.places = tuple((stage, place) for stage, depth in enumerate(spec.depths) for place in range(depth))

    def embed(self, images: Tensor) -> Tensor:
        """Embed normalised (B, 3, H, W) as tokens of the first stage: (B, h * w, D), float32."""
        return self.patch_embed(images)

    def enter_block(self, index: int, tokens: Tensor) -> Tensor:
        """Return what block ``index`` takes: ``tokens`` of the block before it, merged if a stage begins."""
        stage, place = self.places[index]
        if stage and place == 0:
            tokens = self.layers[stage].downsample(tokens)
        return tokens

    def run_stack(self, tokens: Tensor, count: int | None = None, keep: Tensor | None = None) -> Tensor:
        """Pass tokens of the first stage through the first ``count`` blocks, or all.

        ``keep`` (2 * blocks, B, 1, 1) are drop path's factors.
        """
        for index, (stage, place) in enumerate(self.places[:count]):
            tokens = self.enter_block(index, tokens)
            block = self.layers[stage].blocks[place]
            if keep is None:
                tokens = block(tokens)
            else:
                tokens = block(tokens, None, None, keep[2 * index], keep[2 * index + 1])
        return tokens

    def compute_similarity(self, tokens: Tensor, blocks: int) -> Tensor:
        """Compute the symmetrised mean attention between cells of the first ``blocks`` blocks: (B, N, N), float32."""
        used = self.places[:blocks]
        cells = self.grid[0] * self.grid[1]
        total = ops.zeros((tokens.shape[0], cells, cells), ms.float32)
        for index, (stage, place) in enumerate(used):
            tokens = self.enter_block(index, tokens)
            block = self.layers[stage].blocks[place]
            total = total + block.compute_cell_attention(tokens)
            # nobody needs the output of the last block
            if index < len(used) - 1:
                tokens = block(tokens)
        return symmetrise(total / len(used))

    def compute_features(self, tokens: Tensor, blocks: int) -> Tensor:
        """Compute the tokens behind the first ``blocks`` blocks, mean over each cell: -> (B, N, D of their stage)."""
        stage, place = self.places[: max(blocks, 1)][-1]
        height, across = self.layers[stage].blocks[place].map_size
        behind = self.run_stack(tokens, blocks)
        down, columns = self.grid
        shape = (behind.shape[0], down, height // down, columns, across // columns, behind.shape[2])
        return behind.reshape(shape).mean(axis=(2, 4)).reshape((behind.shape[0], down * columns, behind.shape[2]))

    def pool_features(self, tokens: Tensor) -> Tensor:
        """Average over all output cells what the last norm gives: -> (B, D of the last stage), float32."""
        return self.norm(self.run_stack(tokens)).mean(axis=1)


class SwinTransformer(SwinParts):
    """timm's Swin of ``spec``: normalised (B, 3, H, W) -> (B, classes), or mean features (B, D) for 0 classes.

    The features are the mean of the last tokens behind their norm, so that ``pool`` and ``fc_norm`` leave no choice;
    they are there because a ViT has them. With ``probe`` a batch norm stands before the linear classifier. Weights are
    drawn from ``rng``.
    """

    def __init__(
        self,
        spec: SwinSpec,
        rng: np.random.Generator,
        classes: int = 0,
        pool: Pool = "avg",
        fc_norm: bool | None = None,
        dtype: Any = ms.float32,
        probe: bool = False,
    ) -> None:
        super().__init__(spec, dtype)
        self.classes = classes
        if classes:
            self.head = _SwinHead(build_classifier(spec.features, classes, dtype, probe))
        init_truncated(self, rng)

    def compute_tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute the tokens that leave the last block: (B, 3, H, W) -> (B, N, D)."""
        return self.run_stack(self.embed(images), None, keep)

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """Norm and pool the tokens for the head: (B, N, D) -> (B, D)."""
        return self.norm(tokens).mean(axis=1)

    def norm_patches(self, tokens: Tensor) -> Tensor:
        """Apply the last norm to the tokens: (B, N, D) -> (B, N, D)."""
        return self.norm(tokens)

    def pool_images(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute the pooled features: (B, 3, H, W) -> (B, D)."""
        return self.pool_tokens(self.compute_tokens(images, keep))

    def construct(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute logits, or features without a head; ``keep`` (2 * blocks, B, 1, 1) are drop path's factors."""
        features = self.pool_images(images, keep)
        return self.head(features) if self.classes else features


class _SwinHead(nn.Cell):
    """A classifier under timm's name: ``head.fc``."""

    def __init__(self, fc: nn.Cell) -> None:
        super().__init__()
        self.fc = fc

    def construct(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, C)."""
        return self.fc(features)
