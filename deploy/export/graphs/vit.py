"""A trained ViT as an ONNX graph, written node by node: the same file whatever framework is installed, or none.

If all positions are added, images may have any size: then, and only then, shapes are computed at run time.

Shapes: B images, N = h * w patches, P tokens before them (class token, registers), L = P + N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ehm.config.encoders import VitSpec, compute_relative_index
from ehm.deploy.bundle.manifest import Target
from ehm.deploy.export.graphs.attention_pool import add_attention_pool
from ehm.deploy.export.graphs.block_arrays import unify_blocks
from ehm.deploy.export.graphs.encoder import AttentionSizes, EncoderGraph
from ehm.deploy.export.graphs.mlp import add_mlp
from ehm.deploy.export.graphs.nodes import MICROSOFT
from ehm.deploy.export.graphs.rotary import add_angles, add_rotation
from ehm.deploy.export.graphs.vit_embedding import add_embedding
from ehm.models.heads import Output
from ehm.models.weights import Weights

__all__ = ["GRAPHS", "VitGraph", "can_fuse_attention", "can_take_any_size"]

_END = 2**63 - 1
"""The end of a slice that takes all there is."""


class VitGraph(EncoderGraph):
    """The graph of a ViT of any form for any runtime.

    ``length`` is the number of tokens. With ``dynamic_size``, which :func:`can_take_any_size` tells of, it is -1,
    because the image's size decides.
    """

    classifier = VitSpec.classifier

    def __init__(
        self, weights: Weights, outputs: Sequence[Output], opset: int = 17, dynamic_size: bool = False
    ) -> None:
        super().__init__(weights, outputs, opset)
        assert isinstance(weights.spec, VitSpec)
        self.spec = weights.spec
        self.arrays = unify_blocks(weights.arrays, self.spec)
        self.epsilon = self.spec.form.norm_epsilon
        self.grid = self.spec.grid
        self.features = self.spec.width
        self.dynamic_size = dynamic_size
        self.prefix = self.spec.form.prefix_tokens
        self.length = -1 if dynamic_size else self.prefix + self.spec.patches
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

    def add_norm(self, name: str, x: str, output: str) -> str:
        """Add a norm of the kind that the form has: layer norm, or x / sqrt(mean(x^2) + epsilon) times the weight."""
        if self.spec.form.norm == "layer":
            return super().add_norm(name, x, output)
        squares = self.add_node("Mul", [x, x], f"{output}/squares")
        mean = self.reduce_mean(squares, f"{output}/mean", "norm.axis", -1, keepdims=1)
        positive = self.add_node("Add", [mean, self.add_number("norm.epsilon", self.epsilon)], f"{output}/positive")
        size = self.add_node("Sqrt", [positive], f"{output}/size")
        normal = self.add_node("Div", [x, size], f"{output}/normal")
        return self.add_node("Mul", [normal, self.add_parameter(f"{name}.weight")], output)

    def pool_tokens(self, tokens: str, output: str) -> str:
        """See :meth:`EncoderGraph.pool_tokens`; a learned query may pool, too."""
        if self.pool != "map":
            return super().pool_tokens(tokens, output)
        form = self.spec.form
        # timm's VisionTransformer pools the patches, its Eva all tokens
        pools_all = form.rotary.kind is not None
        if self.last_norm == "fc_norm":
            seen = tokens if pools_all else self.select_patches(tokens)
            pooled = add_attention_pool(self, seen, self.sizes, form, "pool/pooled")
            return self.add_norm(self.last_norm, pooled, output)
        seen = self.add_norm(self.last_norm, tokens, "pool/normed") if pools_all else self.add_normed_patches(tokens)
        return add_attention_pool(self, seen, self.sizes, form, output)

    def add_attention(self, name: str, tokens: str) -> str:
        """Add softmax(q k^T / sqrt(d) + bias) v over heads of d features, and the projection behind it."""
        form = self.spec.form
        query, key, value = self.add_heads(name, tokens, self.sizes, divides_queries=not form.norm_queries)
        if form.norm_queries:
            query = self.add_norm(f"{name}.q_norm", query, f"{name}.q_norm/norm")
            key = self.add_norm(f"{name}.k_norm", key, f"{name}.k_norm/norm")
        if form.rotary.kind is not None:
            query = add_rotation(self, query, self.spec)
            key = add_rotation(self, key, self.spec)
        scores = self.add_scores(name, query, key)
        if self.spec.relative:
            biases = self.add_relative_biases(name, self.sizes, compute_relative_index(self.spec.grid).astype(np.int64))
            scores = self.add_node("Add", [scores, biases], f"{name}/biased")
        return self.project_mixture(name, self.add_mixture(name, scores, value, self.sizes))

    def project_mixture(self, name: str, mixed: str) -> str:
        """Add what lies behind the mixture of the values: (B, L, D) -> (B, L, D)."""
        if self.spec.form.norm_values:
            mixed = self.add_norm(f"{name}.norm", mixed, f"{name}.norm/norm")
        # the factors of the branch become a part of the weights
        return self.add_linear(f"{name}.proj", mixed, self.arrays.get(f"{name.removesuffix('.attn')}.gamma_1"))

    def _add_blocks(self, images: str, count: int) -> list[str]:
        """Add images -> the tokens (B, L, D) behind each of the first ``count`` blocks."""
        tokens = add_embedding(self, images, self.spec, self.dynamic_size)
        if self.spec.form.rotary.kind is not None:
            add_angles(self, self.spec)
        outputs = []
        for index in range(count):
            tokens = self._add_block(f"blocks.{index}", tokens)
            outputs.append(tokens)
        return outputs

    def _add_block(self, name: str, tokens: str) -> str:
        normed = self.add_norm(f"{name}.norm1", tokens, f"{name}.norm1/norm")
        attended = self.add_attention(f"{name}.attn", normed)
        tokens = self.add_node("Add", [tokens, attended], f"{name}.attn/residual")
        normed = self.add_norm(f"{name}.norm2", tokens, f"{name}.norm2/norm")
        refined = add_mlp(self, f"{name}.mlp", normed, self.spec.form.mlp, self.arrays.get(f"{name}.gamma_2"))
        return self.add_node("Add", [tokens, refined], f"{name}.mlp/residual")

    def _slice_patches(self, tokens: str, output: str) -> str:
        """Add (B, L, D) -> the patches (B, N, D)."""
        if not self.prefix:
            return tokens
        start = self.add_integers("pool.start", self.prefix)
        end = self.add_integers("pool.end", _END if self.dynamic_size else self.length)
        return self.add_node("Slice", [tokens, start, end, self.add_integers("pool.axis", 1)], output)


def can_fuse_attention(spec: VitSpec) -> bool:
    """Return whether the attention of a ViT of ``spec`` is what ONNX Runtime has an operator of its own for."""
    form = spec.form
    return form.bias and form.rotary.kind is None and not form.norm_queries and not spec.relative


def can_take_any_size(spec: VitSpec) -> bool:
    """Return whether a graph of a ViT of ``spec`` can resample its positions: those that are added, and no others."""
    return spec.form.added_positions and spec.form.rotary.kind is None and not spec.relative


class OnnxRuntimeVitGraph(VitGraph):
    """The graph of a ViT for ONNX Runtime, which fuses all that it gains by at loading, except for attention."""

    def add_attention(self, name: str, tokens: str) -> str:
        """Add attention as one operator of ONNX Runtime's, which scales by the root itself."""
        if not can_fuse_attention(self.spec):
            return super().add_attention(name, tokens)
        weight = self.add_constant(f"{name}.qkv.weight", self.arrays[f"{name}.qkv.weight"].T)
        inputs = [tokens, weight, self.add_parameter(f"{name}.qkv.bias")]
        mixed = self.add_node("Attention", inputs, f"{name}/merged", domain=MICROSOFT, num_heads=self.spec.heads)
        return self.project_mixture(name, mixed)


GRAPHS: dict[Target, type[VitGraph]] = {
    "portable": VitGraph,
    "ascend": VitGraph,
    "onnxruntime": OnnxRuntimeVitGraph,
}
"""The graph that is written for each target."""
