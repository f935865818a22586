"""A trained ViT as an ONNX graph, written node by node: the same file whatever framework is installed, or none.

Plain operators at operator sets 17 and 18: neither Gelu nor Attention. All shapes but the batch are constants, so that
nothing computes a shape at run time; unless the image may have any size. Targets differ in what `_SPELLING` says. Every
constant has the name of the parameter that it is made of.

Shapes: B images, N = h * w patches, L = 1 + N tokens, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from ehm import __version__
from ehm.config.encoders import VitSpec
from ehm.deploy.bundle.manifest import Target
from ehm.deploy.export.graphs.nodes import BICUBIC, MICROSOFT, Nodes
from ehm.deploy.export.graphs.saving import BATCH, set_lowest_ir_version
from ehm.models.heads import Output
from ehm.models.weights import Weights

__all__ = ["make_vit"]

_EPSILON = 1e-6
_END = 2**63 - 1


def make_vit(
    weights: Weights,
    outputs: Sequence[Output],
    opset: int = 17,
    target: Target = "portable",
    dynamic_size: bool = False,
) -> ModelProto:
    """Write a plain ViT (:mod:`ehm.models.plain_vit`) as a graph: (B, 3, H, W) float32 ``images`` -> ``outputs``.

    With ``dynamic_size`` (from ``opset`` 18) H and W are any multiples of the patch size, and the positions are
    resampled as :func:`ehm.models.resample.resample_positions` does.
    """
    graph = _Graph(weights, opset, target, dynamic_size)
    spec = graph.spec
    tokens = _embed(graph)
    for index in range(spec.depth):
        tokens = _block(graph, f"blocks.{index}", tokens)
    _outputs(graph, tokens, outputs)
    size, grid = (("height", "width"), ("rows", "columns")) if dynamic_size else (spec.image_size, spec.grid)
    classes = len(weights.provenance.labels)
    shapes = {"logits": [classes], "features": [spec.width], "patches": [spec.width, *grid]}
    images, *results = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
        for name, shape in [("images", [3, *size]), *((name, shapes[name]) for name in outputs)]
    )
    domains = [helper.make_opsetid("", opset)]
    if any(node.domain for node in graph.nodes.values()):
        domains.append(helper.make_opsetid(MICROSOFT, 1))
    model = helper.make_model(
        helper.make_graph(list(graph.nodes.values()), "ehm", [images], results),
        producer_name="ehm",
        producer_version=__version__,
        opset_imports=domains,
    )
    set_lowest_ir_version(model)
    graph.store_constants(model)
    return model


class _Graph(Nodes):
    """The graph of a plain ViT; ``length`` is the number of tokens, -1 if the image's size decides."""

    def __init__(self, weights: Weights, opset: int, target: Target, dynamic_size: bool) -> None:
        super().__init__()
        assert isinstance(weights.spec, VitSpec)
        self.arrays = weights.arrays
        self.spec = weights.spec
        self.pool = weights.provenance.pool
        self.opset = opset
        self.attention, self.layer_norm = _SPELLING[target]
        self.dynamic_size, self.length = dynamic_size, -1 if dynamic_size else 1 + self.spec.patches

    def parameter(self, name: str) -> str:
        return self.constant(name, self.arrays[name])

    def norm(self, name: str, x: str, output: str | None = None) -> str:
        return self.layer_norm(self, name, x, output or f"{name}/norm")

    def linear(self, name: str, x: str, scale: NDArray[np.float32] | None = None) -> str:
        """(..., D) -> (..., E), with rows of the weights multiplied by ``scale`` (E,)."""
        weight, bias = (self.arrays[f"{name}.{part}"] for part in ("weight", "bias"))
        if scale is not None:
            weight, bias = weight * scale[:, None], bias * scale
        product = self.node("MatMul", [x, self.constant(f"{name}.weight", weight.T)], f"{name}/product")
        return self.node("Add", [product, self.constant(f"{name}.bias", bias)], f"{name}/sum")


def _embed(graph: _Graph) -> str:
    """Images -> tokens (B, L, D): the class token takes a row of zeros before the patches, and adds with positions."""
    arrays, spec = graph.arrays, graph.spec
    name = "patch_embed.proj"
    weights = [graph.parameter(f"{name}.weight"), graph.parameter(f"{name}.bias")]
    size = [spec.patch_size, spec.patch_size]
    grid = graph.node("Conv", ["images", *weights], "patch_embed/conv", kernel_shape=size, strides=size)
    rows = graph.node("Reshape", [grid, graph.integers("patch_embed.shape", 0, spec.width, -1)], "patch_embed/rows")
    patches = graph.node("Transpose", [rows], "patch_embed/patches", perm=[0, 2, 1])
    padded = graph.node("Pad", [patches, graph.integers("cls_token.pads", 0, 1, 0, 0, 0, 0)], "cls_token/pad")
    positions = arrays["pos_embed"].copy()
    positions[:, :1] += arrays["cls_token"]
    added = _resampled(graph, positions, grid) if graph.dynamic_size else graph.constant("pos_embed", positions)
    return graph.node("Add", [padded, added], "pos_embed/sum")


def _resampled(graph: _Graph, positions: NDArray[np.float32], grid: str) -> str:
    """Positions (1, L, D) for the tokens of ``grid`` (B, D, h, w)."""
    spec = graph.spec
    token, patches = np.split(positions, [1], axis=1)
    stored = graph.constant("pos_embed", patches.swapaxes(1, 2).reshape(1, spec.width, *spec.grid))
    size = graph.node("Shape", [grid], "grid/size", start=2)
    resized = graph.node("Resize", [stored, "", "", size], "pos_embed/resized", axes=[2, 3], **BICUBIC)
    rows = graph.node("Reshape", [resized, "patch_embed.shape"], "pos_embed/rows")
    columns = graph.node("Transpose", [rows], "pos_embed/patches", perm=[0, 2, 1])
    return graph.node("Concat", [graph.constant("cls_token", token), columns], "pos_embed/tokens", axis=1)


def _block(graph: _Graph, name: str, tokens: str) -> str:
    attended = graph.attention(graph, f"{name}.attn", graph.norm(f"{name}.norm1", tokens))
    tokens = graph.node("Add", [tokens, attended], f"{name}.attn/residual")
    hidden = _gelu(graph, f"{name}.mlp", graph.linear(f"{name}.mlp.fc1", graph.norm(f"{name}.norm2", tokens)))
    return graph.node("Add", [tokens, graph.linear(f"{name}.mlp.fc2", hidden)], f"{name}.mlp/residual")


def _attention(graph: _Graph, name: str, tokens: str) -> str:
    """softmax(q k^T / sqrt(d)) v over heads of d features; the root is part of the queries' weights."""
    spec = graph.spec
    heads, size = spec.heads, spec.width // spec.heads
    scale = np.ones(3 * spec.width, np.float32)
    scale[: spec.width] = size**-0.5
    qkv = graph.linear(f"{name}.qkv", tokens, scale)
    shape = graph.integers("attn.heads", 0, graph.length, 3 * heads, size)
    split = graph.node("Reshape", [qkv, shape], f"{name}/heads")
    split = graph.node("Transpose", [split], f"{name}/qkv", perm=[0, 2, 1, 3])
    query, key, value = (f"{name}/{part}" for part in ("query", "key", "value"))
    parts = [split, graph.integers("attn.parts", heads, heads, heads)]
    graph.node("Split", parts, query, key, value, axis=1)
    key = graph.node("Transpose", [key], f"{name}/transposed", perm=[0, 1, 3, 2])
    scores = graph.node("MatMul", [query, key], f"{name}/scores")
    shares = graph.node("Softmax", [scores], f"{name}/softmax", axis=-1)
    mixed = graph.node("MatMul", [shares, value], f"{name}/mixed")
    mixed = graph.node("Transpose", [mixed], f"{name}/tokens", perm=[0, 2, 1, 3])
    merged = graph.node(
        "Reshape", [mixed, graph.integers("attn.merged", 0, graph.length, spec.width)], f"{name}/merged"
    )
    return graph.linear(f"{name}.proj", merged)


def _fused_attention(graph: _Graph, name: str, tokens: str) -> str:
    """The same as one operator of ONNX Runtime's, which scales by the root itself."""
    weight = graph.constant(f"{name}.qkv.weight", graph.arrays[f"{name}.qkv.weight"].T)
    inputs = [tokens, weight, graph.parameter(f"{name}.qkv.bias")]
    options = {"domain": MICROSOFT, "num_heads": graph.spec.heads}
    return graph.linear(f"{name}.proj", graph.node("Attention", inputs, f"{name}/merged", **options))


def _layer_norm(graph: _Graph, name: str, x: str, output: str) -> str:
    parameters = [graph.parameter(f"{name}.weight"), graph.parameter(f"{name}.bias")]
    return graph.node("LayerNormalization", [x, *parameters], output, axis=-1, epsilon=_EPSILON)


def _plain_norm(graph: _Graph, name: str, x: str, output: str) -> str:
    """The same by its definition (Ba et al., 2016); two outputs may need one norm, of the patches and of their mean."""
    centred = graph.node("Sub", [x, _mean(graph, x, f"{output}/mean", -1, keep=True)], f"{output}/centred")
    squares = graph.node("Mul", [centred, centred], f"{output}/squares")
    variance = _mean(graph, squares, f"{output}/variance", -1, keep=True)
    deviation = graph.node("Add", [variance, graph.number("norm.epsilon", _EPSILON)], f"{output}/positive")
    deviation = graph.node("Sqrt", [deviation], f"{output}/deviation")
    normal = graph.node("Div", [centred, deviation], f"{output}/normal")
    scaled = graph.node("Mul", [normal, graph.parameter(f"{name}.weight")], f"{output}/scaled")
    return graph.node("Add", [scaled, graph.parameter(f"{name}.bias")], output)


def _gelu(graph: _Graph, name: str, x: str) -> str:
    """x (1 + erf(x / sqrt 2)) / 2, in the order that ONNX Runtime recognises."""
    root = graph.node("Div", [x, graph.number("gelu.root", math.sqrt(2))], f"{name}/div")
    error = graph.node("Erf", [root], f"{name}/erf")
    error = graph.node("Add", [error, graph.number("gelu.one", 1)], f"{name}/one")
    product = graph.node("Mul", [x, error], f"{name}/mul")
    return graph.node("Mul", [product, graph.number("gelu.half", 0.5)], f"{name}/gelu")


def _outputs(graph: _Graph, tokens: str, outputs: Sequence[Output]) -> None:
    """(B, L, D) -> what is asked for; a norm over tokens is that of each alone, and follows the selection."""
    norm = "norm" if "norm.weight" in graph.arrays else "fc_norm"
    if "patches" in outputs:
        columns = graph.node("Transpose", [_patches(graph, tokens, norm)], "patches/columns", perm=[0, 2, 1])
        if graph.dynamic_size:
            first = graph.integers("patches.shape", 0, graph.spec.width)
            shape = graph.node("Concat", [first, "grid/size"], "patches/shape", axis=0)
        else:
            shape = graph.integers("patches.shape", 0, graph.spec.width, *graph.spec.grid)
        graph.node("Reshape", [columns, shape], "patches")
    if tuple(outputs) != ("patches",):
        _pool(graph, tokens, norm)
    if "logits" in outputs:
        _classify(graph, "features")


def _pool(graph: _Graph, tokens: str, norm: str) -> None:
    """(B, L, D) -> ``features`` (B, D)."""
    if graph.pool == "token":
        index = graph.constant("pool.token", np.array(0, np.int64))
        graph.norm(norm, graph.node("Gather", [tokens, index], "pool/token", axis=1), "features")
    elif norm == "norm":
        _mean(graph, _patches(graph, tokens, norm), "features")
    else:
        graph.norm(norm, _mean(graph, _patches(graph, tokens), "pool/mean"), "features")


def _patches(graph: _Graph, tokens: str, norm: str | None = None) -> str:
    """(B, L, D) -> the patches (B, N, D), behind ``norm`` if it is given."""
    ends = [graph.integers("pool.start", 1), graph.integers("pool.end", _END if graph.dynamic_size else graph.length)]
    patches = graph.node("Slice", [tokens, *ends, graph.integers("pool.axis", 1)], "pool/patches")
    return graph.norm(norm, patches) if norm else patches


def _mean(graph: _Graph, x: str, output: str, axis: int = 1, keep: bool = False) -> str:
    """The mean over an axis, by default (B, N, D) -> (B, D); operator set 18 made the axes an input."""
    if graph.opset < 18:
        return graph.node("ReduceMean", [x], output, axes=[axis], keepdims=int(keep))
    axes = graph.integers("pool.axis" if axis == 1 else "norm.axis", axis)
    return graph.node("ReduceMean", [x, axes], output, keepdims=int(keep))


def _classify(graph: _Graph, features: str) -> str:
    """(B, D) -> ``logits`` (B, C); a probe's batch norm subtracts its mean, and divides in the classifier's weights."""
    arrays = graph.arrays
    if "head.0.running_mean" not in arrays:
        inputs = [features, graph.parameter("head.weight"), graph.parameter("head.bias")]
        return graph.node("Gemm", inputs, "logits", transB=1)
    centred = graph.node("Sub", [features, graph.parameter("head.0.running_mean")], "head/centred")
    weight = arrays["head.1.weight"] / np.sqrt(arrays["head.0.running_var"] + np.float32(_EPSILON))
    inputs = [centred, graph.constant("head.1.weight", weight), graph.parameter("head.1.bias")]
    return graph.node("Gemm", inputs, "logits", transB=1)


_SPELLING: dict[Target, tuple[Callable[[_Graph, str, str], str], Callable[[_Graph, str, str, str], str]]] = {
    "portable": (_attention, _layer_norm),
    "ascend": (_attention, _plain_norm),
    "onnxruntime": (_fused_attention, _layer_norm),
}
"""How each target writes attention and layer normalisation.

ONNX Runtime fuses all that it gains by at loading, but attention. Its CANN provider has no LayerNormalization
(1.24.4 and the source after it, cann_graph.cc): it would leave each to the CPU, and run the network in pieces between.
"""
