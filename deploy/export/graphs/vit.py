"""A trained ViT as an ONNX graph, written node by node: the same file whatever framework is installed, or none.

Plain operators at operator sets 17 and 18: neither Gelu nor Attention. All shapes but the batch are constants, so that
nothing computes a shape at run time; unless the image may have any size. Every constant has the name of the parameter
that it is made of.

Shapes: B images, N = h * w patches, L = 1 + N tokens, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from ehm import __version__
from ehm.config.encoders import VitSpec
from ehm.deploy.bundle.manifest import Target
from ehm.deploy.export.graphs.nodes import BICUBIC, MICROSOFT, Nodes
from ehm.deploy.export.graphs.norms import write_norms_out
from ehm.deploy.export.graphs.saving import BATCH, set_lowest_ir_version
from ehm.models.heads import Output
from ehm.models.weights import Weights

__all__ = ["GRAPHS", "VitGraph", "make_vit"]

_EPSILON = 1e-6
_END = 2**63 - 1
"""The end of a slice that takes all there is."""


class VitGraph(Nodes):
    """The graph of a plain ViT for any runtime, from ``images`` to its ``outputs``.

    ``length`` is the number of tokens, -1 if the image's size decides. Names of nodes and constants are a part of the
    file: equal arrays give equal bytes.
    """

    def __init__(self, weights: Weights, outputs: Sequence[Output], opset: int, dynamic_size: bool) -> None:
        super().__init__()
        assert isinstance(weights.spec, VitSpec)
        self.arrays = weights.arrays
        self.spec = weights.spec
        self.pool = weights.provenance.pool
        self.outputs = tuple(outputs)
        self.opset = opset
        self.dynamic_size = dynamic_size
        self.length = -1 if dynamic_size else 1 + self.spec.patches
        # a fine-tuned encoder may have its last norm behind the average
        self.last_norm = "norm" if "norm.weight" in self.arrays else "fc_norm"

    def write(self) -> None:
        """Add the nodes from ``images`` to every output."""
        tokens = self._embed_images()
        for index in range(self.spec.depth):
            tokens = self._add_block(f"blocks.{index}", tokens)
        # nodes are shared by name, so an output costs only what others have not computed
        if "patches" in self.outputs:
            self._add_patch_output(tokens)
        if self.outputs != ("patches",):
            self._pool_tokens(tokens)
        if "logits" in self.outputs:
            self._classify("features")

    def add_parameter(self, name: str) -> str:
        """Add a parameter of the model as it is."""
        return self.add_constant(name, self.arrays[name])

    def add_linear(self, name: str, x: str, scale: NDArray[np.float32] | None = None) -> str:
        """Add a linear layer (..., D) -> (..., E), with rows of the weights multiplied by ``scale`` (E,)."""
        weight = self.arrays[f"{name}.weight"]
        bias = self.arrays[f"{name}.bias"]
        if scale is not None:
            weight = weight * scale[:, None]
            bias = bias * scale
        # MatMul and Add rather than Gemm, which takes matrices only
        product = self.add_node("MatMul", [x, self.add_constant(f"{name}.weight", weight.T)], f"{name}/product")
        return self.add_node("Add", [product, self.add_constant(f"{name}.bias", bias)], f"{name}/sum")

    def add_layer_norm(self, name: str, x: str, output: str) -> str:
        """Add a layer normalisation over the features."""
        parameters = [self.add_parameter(f"{name}.weight"), self.add_parameter(f"{name}.bias")]
        return self.add_node("LayerNormalization", [x, *parameters], output, axis=-1, epsilon=_EPSILON)

    def add_attention(self, name: str, tokens: str) -> str:
        """Add softmax(q k^T / sqrt(d)) v over heads of d features, and the projection behind it."""
        heads = self.spec.heads
        head_width = self.spec.width // heads
        # the root becomes a part of the queries' weights
        scale = np.ones(3 * self.spec.width, np.float32)
        scale[: self.spec.width] = head_width**-0.5
        qkv = self.add_linear(f"{name}.qkv", tokens, scale)
        shape = self.add_integers("attn.heads", 0, self.length, 3 * heads, head_width)
        split = self.add_node("Reshape", [qkv, shape], f"{name}/heads")
        split = self.add_node("Transpose", [split], f"{name}/qkv", perm=[0, 2, 1, 3])
        query = f"{name}/query"
        key = f"{name}/key"
        value = f"{name}/value"
        parts = [split, self.add_integers("attn.parts", heads, heads, heads)]
        self.add_node("Split", parts, query, key, value, axis=1)
        key = self.add_node("Transpose", [key], f"{name}/transposed", perm=[0, 1, 3, 2])
        scores = self.add_node("MatMul", [query, key], f"{name}/scores")
        # over the keys
        shares = self.add_node("Softmax", [scores], f"{name}/softmax", axis=-1)
        mixed = self.add_node("MatMul", [shares, value], f"{name}/mixed")
        mixed = self.add_node("Transpose", [mixed], f"{name}/tokens", perm=[0, 2, 1, 3])
        shape = self.add_integers("attn.merged", 0, self.length, self.spec.width)
        merged = self.add_node("Reshape", [mixed, shape], f"{name}/merged")
        return self.add_linear(f"{name}.proj", merged)

    def _embed_images(self) -> str:
        """Add images -> tokens (B, L, D).

        The class token takes a row of zeros before the patches, and is added together with the positions.
        """
        name = "patch_embed.proj"
        weights = [self.add_parameter(f"{name}.weight"), self.add_parameter(f"{name}.bias")]
        size = [self.spec.patch_size, self.spec.patch_size]
        grid = self.add_node("Conv", ["images", *weights], "patch_embed/conv", kernel_shape=size, strides=size)
        shape = self.add_integers("patch_embed.shape", 0, self.spec.width, -1)
        rows = self.add_node("Reshape", [grid, shape], "patch_embed/rows")
        patches = self.add_node("Transpose", [rows], "patch_embed/patches", perm=[0, 2, 1])
        # a Concat would need the batch's size, which is dynamic
        padded = self.add_node("Pad", [patches, self.add_integers("cls_token.pads", 0, 1, 0, 0, 0, 0)], "cls_token/pad")
        # the class token has one position; adding both here spares a node at run time
        positions = self.arrays["pos_embed"].copy()
        positions[:, :1] += self.arrays["cls_token"]
        if self.dynamic_size:
            added = self._resample_positions(positions, grid)
        else:
            added = self.add_constant("pos_embed", positions)
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

    def _add_block(self, name: str, tokens: str) -> str:
        normed = self.add_layer_norm(f"{name}.norm1", tokens, f"{name}.norm1/norm")
        attended = self.add_attention(f"{name}.attn", normed)
        tokens = self.add_node("Add", [tokens, attended], f"{name}.attn/residual")
        normed = self.add_layer_norm(f"{name}.norm2", tokens, f"{name}.norm2/norm")
        hidden = self._add_gelu(f"{name}.mlp", self.add_linear(f"{name}.mlp.fc1", normed))
        return self.add_node("Add", [tokens, self.add_linear(f"{name}.mlp.fc2", hidden)], f"{name}.mlp/residual")

    def _add_gelu(self, name: str, x: str) -> str:
        """Add x (1 + erf(x / sqrt 2)) / 2, in the order that ONNX Runtime recognises."""
        root = self.add_node("Div", [x, self.add_number("gelu.root", math.sqrt(2))], f"{name}/div")
        error = self.add_node("Erf", [root], f"{name}/erf")
        error = self.add_node("Add", [error, self.add_number("gelu.one", 1)], f"{name}/one")
        product = self.add_node("Mul", [x, error], f"{name}/mul")
        return self.add_node("Mul", [product, self.add_number("gelu.half", 0.5)], f"{name}/gelu")

    def _add_patch_output(self, tokens: str) -> None:
        """Add (B, L, D) -> ``patches`` (B, D, h, w), behind the last norm."""
        patches = self._normed_patches(tokens)
        columns = self.add_node("Transpose", [patches], "patches/columns", perm=[0, 2, 1])
        if self.dynamic_size:
            first = self.add_integers("patches.shape", 0, self.spec.width)
            shape = self.add_node("Concat", [first, "grid/size"], "patches/shape", axis=0)
        else:
            shape = self.add_integers("patches.shape", 0, self.spec.width, *self.spec.grid)
        self.add_node("Reshape", [columns, shape], "patches")

    def _pool_tokens(self, tokens: str) -> None:
        """Add (B, L, D) -> ``features`` (B, D).

        A norm over tokens is that of each alone, so it follows the selection of the tokens that count.
        """
        if self.pool == "token":
            index = self.add_constant("pool.token", np.array(0, np.int64))
            token = self.add_node("Gather", [tokens, index], "pool/token", axis=1)
            self.add_layer_norm(self.last_norm, token, "features")
        elif self.last_norm == "norm":
            self._add_mean(self._normed_patches(tokens), "features")
        else:
            self.add_layer_norm(self.last_norm, self._add_mean(self._select_patches(tokens), "pool/mean"), "features")

    def _normed_patches(self, tokens: str) -> str:
        """Add (B, L, D) -> the patches (B, N, D) behind the last norm."""
        return self.add_layer_norm(self.last_norm, self._select_patches(tokens), f"{self.last_norm}/norm")

    def _select_patches(self, tokens: str) -> str:
        """Add (B, L, D) -> the patches (B, N, D)."""
        start = self.add_integers("pool.start", 1)
        end = self.add_integers("pool.end", _END if self.dynamic_size else self.length)
        return self.add_node("Slice", [tokens, start, end, self.add_integers("pool.axis", 1)], "pool/patches")

    def _add_mean(self, x: str, output: str) -> str:
        """Add the mean over the patches: (B, N, D) -> (B, D)."""
        if self.opset < 18:  # which made the axes an input
            return self.add_node("ReduceMean", [x], output, axes=[1], keepdims=0)
        return self.add_node("ReduceMean", [x, self.add_integers("pool.axis", 1)], output, keepdims=0)

    def _classify(self, features: str) -> str:
        """Add (B, D) -> ``logits`` (B, C)."""
        arrays = self.arrays
        if "head.0.running_mean" not in arrays:
            inputs = [features, self.add_parameter("head.weight"), self.add_parameter("head.bias")]
            return self.add_node("Gemm", inputs, "logits", transB=1)
        # a probe's batch norm subtracts its mean here, and divides in the classifier's weights
        centred = self.add_node("Sub", [features, self.add_parameter("head.0.running_mean")], "head/centred")
        weight = arrays["head.1.weight"] / np.sqrt(arrays["head.0.running_var"] + np.float32(_EPSILON))
        inputs = [centred, self.add_constant("head.1.weight", weight), self.add_parameter("head.1.bias")]
        return self.add_node("Gemm", inputs, "logits", transB=1)


class OnnxRuntimeVitGraph(VitGraph):
    """The graph of a ViT for ONNX Runtime, which fuses all that it gains by at loading, except for attention."""

    def add_attention(self, name: str, tokens: str) -> str:
        """Add attention as one operator of ONNX Runtime's, which scales by the root itself."""
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


def make_vit(
    weights: Weights,
    outputs: Sequence[Output],
    opset: int = 17,
    target: Target = "portable",
    dynamic_size: bool = False,
) -> ModelProto:
    """Return a plain ViT as a graph: (B, 3, H, W) float32 ``images`` -> ``outputs``.

    ``weights`` are what :func:`ehm.models.plain_vit.assemble_plain_vit` gave. With ``dynamic_size`` (from ``opset`` 18)
    H and W are any multiples of the patch size, and the positions are resampled as
    :func:`ehm.models.resample.resample_positions` does.
    """
    graph = GRAPHS[target](weights, outputs, opset, dynamic_size)
    graph.write()
    # dynamic dimensions have names, which runtimes show
    size: tuple[int | str, ...] = graph.spec.image_size
    grid: tuple[int | str, ...] = graph.spec.grid
    if dynamic_size:
        size = ("height", "width")
        grid = ("rows", "columns")
    shapes: dict[str, list[int | str]] = {
        "logits": [len(weights.provenance.labels)],
        "features": [graph.spec.width],
        "patches": [graph.spec.width, *grid],
    }
    images = _describe_batch("images", [3, *size])
    described = [_describe_batch(name, shapes[name]) for name in outputs]
    opsets = [helper.make_opsetid("", opset)]
    if any(node.domain for node in graph.nodes.values()):
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    model = helper.make_model(
        helper.make_graph(list(graph.nodes.values()), "ehm", [images], described),
        producer_name="ehm",
        producer_version=__version__,
        opset_imports=opsets,
    )
    set_lowest_ir_version(model)
    graph.store_constants(model)
    if target == "ascend":
        write_norms_out(model)
    return model


def _describe_batch(name: str, shape: list[int | str]) -> ValueInfoProto:
    """Return the description of a float32 tensor (B, *shape)."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
