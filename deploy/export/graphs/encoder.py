"""The base of the graphs of all encoders: linear layers, norms, GELU, attention, and the outputs.

Plain operators at operator sets 17 and 18: neither Gelu nor Attention. All shapes but the batch are constants, so that
nothing computes a shape at run time. Every constant has the name of the parameter that it is made of.

Shapes: B images, N = h * w patches, L tokens (the patches last), D features, C classes, n heads of d features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.export.graphs.nodes import Nodes
from ehm.models.heads import Output
from ehm.models.weights import Weights

__all__ = ["AttentionSizes", "EncoderGraph"]

_PROBE_EPSILON = 1e-6
"""Epsilon of a linear probe's batch norm."""


@dataclass(frozen=True)
class AttentionSizes:
    """The sizes of layers of attention: L tokens (-1 if that is known at run time), D features, n heads.

    Layers of the same ``name`` have the same sizes, and share their constants under that name.
    """

    name: str
    length: int
    width: int
    heads: int


class EncoderGraph(Nodes, ABC):
    """The graph of an encoder for any runtime, from ``images`` to its ``outputs``.

    Names of nodes and constants are a part of the file: equal arrays give equal bytes.
    """

    epsilon: float
    """Epsilon of the encoder's norms."""
    last_norm: str
    """Name of the norm behind the last block."""
    grid: tuple[int, int]
    """Patches down and across, h and w."""
    features: int
    """Width of an output token, D."""
    classifier: str
    """Name of the linear classifier."""

    def __init__(self, weights: Weights, outputs: Sequence[Output], opset: int) -> None:
        super().__init__()
        self.arrays = weights.arrays
        self.pool = weights.provenance.pool
        self.outputs = tuple(outputs)
        self.opset = opset

    def write(self) -> None:
        """Add the nodes from ``images`` to every output."""
        tokens = self.add_tokens("images")
        # nodes are shared by name, so an output costs only what others have not computed
        if "patches" in self.outputs:
            self.add_patch_output(self.add_normed_patches(tokens))
        if self.outputs != ("patches",):
            self.pool_tokens(tokens, "features")
        if "logits" in self.outputs:
            self._classify("features")

    @abstractmethod
    def add_tokens(self, images: str) -> str:
        """Add normalised images -> the tokens that leave the last block, before its norm: (B, L, D)."""

    @abstractmethod
    def add_maps(self, images: str, taps: Sequence[int]) -> list[str]:
        """Add normalised images -> a map of features (B, D_i, h_i, w_i) for each of ``taps``, without a norm.

        They are numbers of a ViT's blocks, or of a Swin's stages; several may be the same.
        """

    @abstractmethod
    def select_patches(self, tokens: str) -> str:
        """Add (B, L, D) -> the patches (B, N, D)."""

    def add_parameter(self, name: str) -> str:
        """Add a parameter of the model as it is."""
        return self.add_constant(name, self.arrays[name])

    def add_linear(self, name: str, x: str, scale: NDArray[np.float32] | None = None) -> str:
        """Add a linear layer (..., D) -> (..., E), with rows of the weights and biases multiplied by ``scale`` (E,)."""
        weight = self.arrays[f"{name}.weight"]
        bias = self.arrays.get(f"{name}.bias")
        if scale is not None:
            weight = weight * scale[:, None]
        # MatMul and Add rather than Gemm, which takes matrices only
        product = self.add_node("MatMul", [x, self.add_constant(f"{name}.weight", weight.T)], f"{name}/product")
        if bias is None:
            return product
        if scale is not None:
            bias = bias * scale
        return self.add_node("Add", [product, self.add_constant(f"{name}.bias", bias)], f"{name}/sum")

    def add_norm(self, name: str, x: str, output: str) -> str:
        """Add a layer normalisation over the features."""
        parameters = [self.add_parameter(f"{name}.weight"), self.add_parameter(f"{name}.bias")]
        return self.add_node("LayerNormalization", [x, *parameters], output, axis=-1, epsilon=self.epsilon)

    def add_gelu(self, name: str, x: str) -> str:
        """Add x (1 + erf(x / sqrt 2)) / 2, in the order that ONNX Runtime recognises."""
        root = self.add_node("Div", [x, self.add_number("gelu.root", math.sqrt(2))], f"{name}/div")
        error = self.add_node("Erf", [root], f"{name}/erf")
        error = self.add_node("Add", [error, self.add_number("gelu.one", 1)], f"{name}/one")
        product = self.add_node("Mul", [x, error], f"{name}/mul")
        return self.add_node("Mul", [product, self.add_number("gelu.half", 0.5)], f"{name}/gelu")

    def add_heads(
        self, name: str, tokens: str, sizes: AttentionSizes, divides_queries: bool = True
    ) -> tuple[str, str, str]:
        """Add queries, keys and values of tokens (B, L, D): (B, n, L, d) each, the queries divided by sqrt(d)."""
        heads = sizes.heads
        width = sizes.width
        head_width = width // heads
        scale = None
        if divides_queries:
            # the root becomes a part of the queries' weights
            scale = np.ones(3 * width, np.float32)
            scale[:width] = head_width**-0.5
        qkv = self.add_linear(f"{name}.qkv", tokens, scale)
        shape = self.add_integers(f"{sizes.name}.heads", 0, sizes.length, 3 * heads, head_width)
        split = self.add_node("Reshape", [qkv, shape], f"{name}/heads")
        split = self.add_node("Transpose", [split], f"{name}/qkv", perm=[0, 2, 1, 3])
        query = f"{name}/query"
        key = f"{name}/key"
        value = f"{name}/value"
        parts = [split, self.add_integers(f"{sizes.name}.parts", heads, heads, heads)]
        self.add_node("Split", parts, query, key, value, axis=1)
        return query, key, value

    def add_scores(self, name: str, query: str, key: str) -> str:
        """Add q k^T of queries and keys (B, n, L, d): (B, n, L, L)."""
        key = self.add_node("Transpose", [key], f"{name}/transposed", perm=[0, 1, 3, 2])
        return self.add_node("MatMul", [query, key], f"{name}/scores")

    def add_mixture(self, name: str, scores: str, value: str, sizes: AttentionSizes) -> str:
        """Add softmax(scores) v with the heads joined: (B, n, L, L) and (B, n, L, d) -> (B, L, D)."""
        # over the keys
        shares = self.add_node("Softmax", [scores], f"{name}/softmax", axis=-1)
        mixed = self.add_node("MatMul", [shares, value], f"{name}/mixed")
        mixed = self.add_node("Transpose", [mixed], f"{name}/tokens", perm=[0, 2, 1, 3])
        shape = self.add_integers(f"{sizes.name}.merged", 0, sizes.length, sizes.width)
        return self.add_node("Reshape", [mixed, shape], f"{name}/merged")

    def add_relative_biases(self, name: str, sizes: AttentionSizes, index: NDArray[np.int64]) -> str:
        """Add the biases of all pairs of tokens (n, L, L), whose rows in the attention's table are ``index`` (L, L).

        They are looked up at run time, because those of every block would be larger than the weights.
        """
        table = self.add_constant(f"{name}.table", self.arrays[f"{name}.relative_position_bias_table"].T)
        places = self.add_constant(f"{sizes.name}.index", index)
        return self.add_node("Gather", [table, places], f"{name}/biases", axis=1)

    def add_mean(self, x: str, output: str) -> str:
        """Add the mean over the patches: (B, N, D) -> (B, D)."""
        return self.reduce_mean(x, output, "pool.axis", 1, keepdims=0)

    def reduce_mean(self, x: str, output: str, axis_name: str, axis: int, keepdims: int) -> str:
        """Add the mean over an axis, whose number is called ``axis_name`` if it is a constant of the graph."""
        if self.opset < 18:  # which made the axes an input
            return self.add_node("ReduceMean", [x], output, axes=[axis], keepdims=keepdims)
        return self.add_node("ReduceMean", [x, self.add_integers(axis_name, axis)], output, keepdims=keepdims)

    def add_normed_patches(self, tokens: str) -> str:
        """Add (B, L, D) -> the patches (B, N, D) behind the last norm."""
        return self.add_norm(self.last_norm, self.select_patches(tokens), f"{self.last_norm}/norm")

    def add_patch_output(self, patches: str) -> None:
        """Add (B, N, D) -> ``patches`` (B, D, h, w)."""
        columns = self.add_node("Transpose", [patches], "patches/columns", perm=[0, 2, 1])
        self.add_node("Reshape", [columns, self.add_grid_shape()], "patches")

    def add_grid_shape(self) -> str:
        """Add the shape (B, D, h, w), with a 0 for the batch."""
        return self.add_integers("patches.shape", 0, self.features, *self.grid)

    def pool_tokens(self, tokens: str, output: str) -> str:
        """Add (B, L, D) -> the pooled features (B, D).

        A norm over tokens is that of each alone, so it follows the selection of the tokens that count.
        """
        if self.pool == "token":
            index = self.add_constant("pool.token", np.array(0, np.int64))
            token = self.add_node("Gather", [tokens, index], "pool/token", axis=1)
            return self.add_norm(self.last_norm, token, output)
        if self.last_norm == "norm":
            return self.add_mean(self.add_normed_patches(tokens), output)
        return self.add_norm(self.last_norm, self.add_mean(self.select_patches(tokens), "pool/mean"), output)

    def _classify(self, features: str) -> None:
        """Add (B, D) -> ``logits`` (B, C)."""
        arrays = self.arrays
        head = self.classifier
        if f"{head}.0.running_mean" not in arrays:
            inputs = [features, self.add_parameter(f"{head}.weight"), self.add_parameter(f"{head}.bias")]
            self.add_node("Gemm", inputs, "logits", transB=1)
            return
        # a probe's batch norm subtracts its mean here, and divides in the classifier's weights
        centred = self.add_node("Sub", [features, self.add_parameter(f"{head}.0.running_mean")], f"{head}/centred")
        weight = arrays[f"{head}.1.weight"] / np.sqrt(arrays[f"{head}.0.running_var"] + np.float32(_PROBE_EPSILON))
        inputs = [centred, self.add_constant(f"{head}.1.weight", weight), self.add_parameter(f"{head}.1.bias")]
        self.add_node("Gemm", inputs, "logits", transB=1)
