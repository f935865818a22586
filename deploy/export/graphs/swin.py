"""A trained Swin as an ONNX graph, written node by node: the same file whatever framework is installed, or none.

The tokens of a map lie row by row all the way. To move the map, to pad it and to cut it into windows is one selection
of tokens by their numbers, and to put it together again another.

Shapes: B images, a map of N = h * w tokens of D features, nW windows of T tokens, n heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import SwinSpec, compute_relative_index
from ehm.deploy.export.graphs.encoder import AttentionSizes, EncoderGraph
from ehm.deploy.export.graphs.mlp import add_mlp
from ehm.models.heads import Output
from ehm.models.weights import Weights
from ehm.models.windows import find_shift, forbid_borders, index_windows

__all__ = ["SwinGraph"]


class SwinGraph(EncoderGraph):
    """The graph of a Swin for any runtime."""

    epsilon = 1e-5  # torch's own, as in timm's class
    classifier = SwinSpec.classifier
    last_norm = "norm"

    def __init__(self, weights: Weights, outputs: Sequence[Output], opset: int = 17) -> None:
        super().__init__(weights, outputs, opset)
        assert isinstance(weights.spec, SwinSpec)
        self.spec = weights.spec
        self.grid = self.spec.grid
        self.features = self.spec.features

    def add_tokens(self, images: str) -> str:
        """See :meth:`EncoderGraph.add_tokens`."""
        return self._add_stages(images, len(self.spec.depths))[-1]

    def add_maps(self, images: str, taps: Sequence[int]) -> list[str]:
        """See :meth:`EncoderGraph.add_maps`."""
        outputs = self._add_stages(images, max(taps) + 1)
        maps = []
        for stage in taps:
            columns = self.add_node("Transpose", [outputs[stage]], f"maps/{stage}/columns", perm=[0, 2, 1])
            width = self.spec.width << stage
            shape = self.add_integers(f"maps.{stage}.shape", 0, width, *self.spec.measure_map(stage))
            maps.append(self.add_node("Reshape", [columns, shape], f"maps/{stage}/map"))
        return maps

    def select_patches(self, tokens: str) -> str:
        """Return all tokens: a Swin has no others than patches."""
        return tokens

    def _add_stages(self, images: str, count: int) -> list[str]:
        """Add images -> the tokens (B, N, D) behind each of the first ``count`` stages."""
        tokens = self._embed_images(images)
        outputs = []
        for stage in range(count):
            if stage:
                tokens = self._merge_patches(stage, tokens)
            for block in range(self.spec.depths[stage]):
                tokens = self._add_block(stage, block, tokens)
            outputs.append(tokens)
        return outputs

    def _embed_images(self, images: str) -> str:
        """Add images -> tokens (B, N, D) of the first stage, behind their norm."""
        name = "patch_embed.proj"
        weights = [self.add_parameter(f"{name}.weight"), self.add_parameter(f"{name}.bias")]
        size = [self.spec.patch_size, self.spec.patch_size]
        grid = self.add_node("Conv", [images, *weights], "patch_embed/conv", kernel_shape=size, strides=size)
        shape = self.add_integers("patch_embed.shape", 0, self.spec.width, -1)
        rows = self.add_node("Reshape", [grid, shape], "patch_embed/rows")
        tokens = self.add_node("Transpose", [rows], "patch_embed/patches", perm=[0, 2, 1])
        return self.add_norm("patch_embed.norm", tokens, "patch_embed.norm/norm")

    def _merge_patches(self, stage: int, tokens: str) -> str:
        """Add the tokens of the stage before -> those that enter ``stage``: 2 x 2 become one of twice the width.

        The four lie one column after the other.
        """
        name = f"layers.{stage}.downsample"
        height, width = self.spec.measure_map(stage)
        features = self.spec.width << (stage - 1)
        shape = self.add_integers(f"{name}.cells", 0, height, 2, width, 2, features)
        cells = self.add_node("Reshape", [tokens, shape], f"{name}/cells")
        cells = self.add_node("Transpose", [cells], f"{name}/columns", perm=[0, 1, 3, 4, 2, 5])
        shape = self.add_integers(f"{name}.joined", 0, height * width, 4 * features)
        joined = self.add_node("Reshape", [cells, shape], f"{name}/joined")
        return self.add_linear(f"{name}.reduction", self.add_norm(f"{name}.norm", joined, f"{name}.norm/norm"))

    def _add_block(self, stage: int, block: int, tokens: str) -> str:
        name = f"layers.{stage}.blocks.{block}"
        normed = self.add_norm(f"{name}.norm1", tokens, f"{name}.norm1/norm")
        attended = self._add_attention(stage, block, normed)
        tokens = self.add_node("Add", [tokens, attended], f"{name}.attn/residual")
        normed = self.add_norm(f"{name}.norm2", tokens, f"{name}.norm2/norm")
        return self.add_node("Add", [tokens, add_mlp(self, f"{name}.mlp", normed, "gelu")], f"{name}.mlp/residual")

    def _add_attention(self, stage: int, block: int, tokens: str) -> str:
        """Add attention within windows, and the projection behind it: (B, N, D) -> (B, N, D)."""
        name = f"layers.{stage}.blocks.{block}.attn"
        down, across = self.spec.windows[stage]
        sizes = AttentionSizes(f"layers.{stage}.attn", down * across, self.spec.width << stage, self.spec.heads[stage])
        # without the class token, which a window does not have
        pairs = np.ascontiguousarray(compute_relative_index((down, across))[1:, 1:], np.int64)
        windows = self._cut_windows(stage, block, tokens)
        query, key, value = self.add_heads(name, windows, sizes)
        scores = self.add_scores(name, query, key)
        scores = self.add_node("Add", [scores, self.add_relative_biases(name, sizes, pairs)], f"{name}/biased")
        scores = self._hide_borders(stage, block, scores)
        merged = self.add_mixture(name, scores, value, sizes)
        return self._join_windows(stage, block, self.add_linear(f"{name}.proj", merged))

    def _cut_windows(self, stage: int, block: int, tokens: str) -> str:
        """Add (B, N, D) -> windows (B * nW, T, D); what lies beyond the map is 0, as in timm's class."""
        name = f"layers.{stage}.blocks.{block}.attn"
        index = self._index_windows(stage, block)
        count = math.prod(self.spec.measure_map(stage))
        if index.size > count:
            # a row of zeros behind the last token
            pads = self.add_integers("window.pads", 0, 0, 0, 0, 1, 0)
            tokens = self.add_node("Pad", [tokens, pads], f"{name}/padded")
        if not np.array_equal(index.ravel(), np.arange(count)):
            shift = _name_shift(find_shift(self.spec, stage, block))
            places = self.add_constant(f"layers.{stage}.{shift}.cut", index.ravel())
            tokens = self.add_node("Gather", [tokens, places], f"{name}/cut", axis=1)
        shape = self.add_integers(f"layers.{stage}.windows", -1, index.shape[1], self.spec.width << stage)
        return self.add_node("Reshape", [tokens, shape], f"{name}/windows")

    def _join_windows(self, stage: int, block: int, windows: str) -> str:
        """Add windows (B * nW, T, D) -> the map (B, N, D) that they were cut from."""
        name = f"layers.{stage}.blocks.{block}.attn"
        index = self._index_windows(stage, block).ravel()
        shape = self.add_integers(f"layers.{stage}.map", -1, index.size, self.spec.width << stage)
        tokens = self.add_node("Reshape", [windows, shape], f"{name}/places")
        count = math.prod(self.spec.measure_map(stage))
        # the place of each token; those beyond the map come last
        places = np.argsort(index, kind="stable")[:count]
        if np.array_equal(places, np.arange(index.size)):
            return tokens
        shift = _name_shift(find_shift(self.spec, stage, block))
        joined = self.add_constant(f"layers.{stage}.{shift}.join", places)
        return self.add_node("Gather", [tokens, joined], f"{name}/joined", axis=1)

    def _hide_borders(self, stage: int, block: int, scores: str) -> str:
        """Add the mask of windows that join two borders of the map, if these are moved: (B * nW, n, T, T) twice."""
        size = self.spec.measure_map(stage)
        shift = find_shift(self.spec, stage, block)
        mask = forbid_borders(size, self.spec.windows[stage], shift)
        if mask is None:
            return scores
        name = f"layers.{stage}.blocks.{block}.attn"
        windows, length, _ = mask.shape
        heads = self.spec.heads[stage]
        shape = self.add_integers(f"layers.{stage}.of_windows", -1, windows, heads, length, length)
        of_windows = self.add_node("Reshape", [scores, shape], f"{name}/of_windows")
        hidden = self.add_constant(f"layers.{stage}.mask", mask[:, None])
        masked = self.add_node("Add", [of_windows, hidden], f"{name}/masked")
        shape = self.add_integers(f"layers.{stage}.scores", -1, heads, length, length)
        return self.add_node("Reshape", [masked, shape], f"{name}/visible")

    def _index_windows(self, stage: int, block: int) -> NDArray[np.int64]:
        """Return the token at each place of each window of a block: (nW, T)."""
        shift = find_shift(self.spec, stage, block)
        return index_windows(self.spec.measure_map(stage), self.spec.windows[stage], shift)


def _name_shift(shift: tuple[int, int]) -> str:
    """Return the part of a constant's name that tells moved windows from the others."""
    return "moved" if any(shift) else "still"
