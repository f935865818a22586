"""A trained ViT as an ONNX graph, written node by node: the same file whatever framework is installed, or none.

A plain ViT's images may have any size: then, and only then, shapes are computed at run time.

Shapes: B images, N = h * w patches, L = 1 + N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import VitSpec, relative_index
from ehm.deploy.bundle.manifest import Target
from ehm.deploy.export.graphs.encoder import AttentionSizes, EncoderGraph
from ehm.deploy.export.graphs.nodes import BICUBIC, MICROSOFT
from ehm.models.heads import Output
from ehm.models.weights import Weights

__all__ = ["GRAPHS", "VitGraph"]

_END = 2**63 - 1
"""The end of a slice that takes all there is."""


class VitGraph(EncoderGraph):
    """The graph of a ViT for any runtime, plain or in the relative form.

    ``length`` is the number of tokens, -1 if the image's size decides (``dynamic_size``, of plain ViTs alone).
    """

    classifier = VitSpec.classifier

    def __init__(
        self, weights: Weights, outputs: Sequence[Output], opset: int = 17, dynamic_size: bool = False
    ) -> None:
        super().__init__(weights, outputs, opset)
        assert isinstance(weights.spec, VitSpec)
        self.spec = weights.spec
        self.epsilon = self.spec.form.norm_epsilon
        self.grid = self.spec.grid
        self.features = self.spec.width
        self.dynamic_size = dynamic_size
        self.length = -1 if dynamic_size else 1 + self.spec.patches
        self.sizes = AttentionSizes("attn", self.length, self.spec.width, self.spec.heads)
        # a fine-tuned encoder may have its last norm behind the average
        self.last_norm = "norm" if "norm.weight" in self.arrays else "fc_norm"

    def add_tokens(self, images: str) -> str:
        """See :meth:`EncoderGraph.add_tokens`."""
        return self._add_blocks(images, self.spec.depth)[-1]

    def add_maps(self, images: str, taps: Sequence[int]) -> list[str]:
        """See :meth:`EncoderGraph.add_maps`."""
        outputs = self._add_blocks(images, max(taps) + 1)
        maps = []
        for tap in taps:
            patches = self._slice_patches(outputs[tap], f"maps/{tap}/patches")
            columns = self.add_node("Transpose", [patches], f"maps/{tap}/columns", perm=[0, 2, 1])
            maps.append(self.add_node("Reshape", [columns, self.add_grid_shape()], f"maps/{tap}/map"))
        return maps

    def select_patches(self, tokens: str) -> str:
        """See :meth:`EncoderGraph.select_patches`."""
        return self._slice_patches(tokens, "pool/patches")

    def add_grid_shape(self) -> str:
        """See :meth:`EncoderGraph.add_grid_shape`."""
        if not self.dynamic_size:
            return super().add_grid_shape()
        first = self.add_integers("patches.shape", 0, self.spec.width)
        return self.add_node("Concat", [first, "grid/size"], "patches/shape", axis=0)

    def add_attention(self, name: str, tokens: str) -> str:
        """Add softmax(q k^T / sqrt(d) + bias) v over heads of d features, and the projection behind it."""
        bias = None
        if self.spec.relative:
            # keys have no bias
            q_bias = self.arrays[f"{name}.q_bias"]
            bias = np.concatenate([q_bias, np.zeros_like(q_bias), self.arrays[f"{name}.v_bias"]])
        scores, value = self.add_scores(name, tokens, self.sizes, bias)
        if self.spec.relative:
            biases = self.add_relative_biases(name, self.sizes, relative_index(self.spec.grid).astype(np.int64))
            scores = self.add_node("Add", [scores, biases], f"{name}/biased")
        merged = self.add_mixture(name, scores, value, self.sizes)
        # the factors of the branch become a part of the weights
        return self.add_linear(f"{name}.proj", merged, self.arrays.get(f"{name.removesuffix('.attn')}.gamma_1"))

    def _embed_images(self, images: str) -> str:
        """Add images -> tokens (B, L, D).

        The class token takes a row of zeros before the patches, and is added together with the positions.
        """
        name = "patch_embed.proj"
        weights = [self.add_parameter(f"{name}.weight"), self.add_parameter(f"{name}.bias")]
        size = [self.spec.patch_size, self.spec.patch_size]
        grid = self.add_node("Conv", [images, *weights], "patch_embed/conv", kernel_shape=size, strides=size)
        shape = self.add_integers("patch_embed.shape", 0, self.spec.width, -1)
        rows = self.add_node("Reshape", [grid, shape], "patch_embed/rows")
        patches = self.add_node("Transpose", [rows], "patch_embed/patches", perm=[0, 2, 1])
        # a Concat would need the batch's size, which is dynamic
        padded = self.add_node("Pad", [patches, self.add_integers("cls_token.pads", 0, 1, 0, 0, 0, 0)], "cls_token/pad")
        if self.spec.relative:
            # positions are added to no token, and the class token to its row alone
            positions = np.zeros((1, 1 + self.spec.patches, self.spec.width), np.float32)
        else:
            positions = self.arrays["pos_embed"].copy()
        # the class token has one position; adding both here spares a node at run time
        positions[:, :1] += self.arrays["cls_token"]
        if self.dynamic_size:
            added = self._resample_positions(positions, grid)
        else:
            added = self.add_constant("cls_token" if self.spec.relative else "pos_embed", positions)
        return self.add_node("Add", [padded, added], "pos_embed/sum")

    def _resample_positions(self, positions: NDArray[np.float32], grid: str) -> str:
        """Add positions (1, L, D) for the tokens of ``grid`` (B, D, h, w)."""
        token, patches = np.split(positions, [1], axis=1)
        # Resize works on planes (1, D, h, w)
        planes = patches.swapaxes(1, 2).reshape(1, self.spec.width, *self.spec.grid)
        stored = self.add_constant("pos_embed", planes)
        size = self.add_node("Shape", [grid], "grid/size", start=2)
        resized = self.add_node("Resize", [stored, "", "", size], "pos_embed/resized", axes=[2, 3], **BICUBIC)
        rows = self.add_node("Reshape", [resized, "patch_embed.shape"], "pos_embed/rows")
        columns = self.add_node("Transpose", [rows], "pos_embed/patches", perm=[0, 2, 1])
        return self.add_node("Concat", [self.add_constant("cls_token", token), columns], "pos_embed/tokens", axis=1)

    def _add_blocks(self, images: str, count: int) -> list[str]:
        """Add images -> the tokens (B, L, D) behind each of the first ``count`` blocks."""
        tokens = self._embed_images(images)
        outputs = []
        for index in range(count):
            tokens = self._add_block(f"blocks.{index}", tokens)
            outputs.append(tokens)
        return outputs

    def _add_block(self, name: str, tokens: str) -> str:
        normed = self.add_layer_norm(f"{name}.norm1", tokens, f"{name}.norm1/norm")
        attended = self.add_attention(f"{name}.attn", normed)
        tokens = self.add_node("Add", [tokens, attended], f"{name}.attn/residual")
        normed = self.add_layer_norm(f"{name}.norm2", tokens, f"{name}.norm2/norm")
        hidden = self.add_gelu(f"{name}.mlp", self.add_linear(f"{name}.mlp.fc1", normed))
        refined = self.add_linear(f"{name}.mlp.fc2", hidden, self.arrays.get(f"{name}.gamma_2"))
        return self.add_node("Add", [tokens, refined], f"{name}.mlp/residual")

    def _slice_patches(self, tokens: str, output: str) -> str:
        """Add (B, L, D) -> the patches (B, N, D)."""
        start = self.add_integers("pool.start", 1)
        end = self.add_integers("pool.end", _END if self.dynamic_size else self.length)
        return self.add_node("Slice", [tokens, start, end, self.add_integers("pool.axis", 1)], output)


class OnnxRuntimeVitGraph(VitGraph):
    """The graph of a plain ViT for ONNX Runtime, which fuses all that it gains by at loading, except for attention."""

    def add_attention(self, name: str, tokens: str) -> str:
        """Add attention as one operator of ONNX Runtime's, which scales by the root itself."""
        if self.spec.relative:
            return super().add_attention(name, tokens)
        weight = self.add_constant(f"{name}.qkv.weight", self.arrays[f"{name}.qkv.weight"].T)
        inputs = [tokens, weight, self.add_parameter(f"{name}.qkv.bias")]
        merged = self.add_node("Attention", inputs, f"{name}/merged", domain=MICROSOFT, num_heads=self.spec.heads)
        return self.add_linear(f"{name}.proj", merged)


GRAPHS: dict[Target, type[VitGraph]] = {
    "portable": VitGraph,
    "ascend": VitGraph,
    "onnxruntime": OnnxRuntimeVitGraph,
}
"""The graph that is written for each target."""
