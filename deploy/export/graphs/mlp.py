"""The MLP behind a norm, with each of the activations that published encoders have, as nodes of an ONNX graph.

Shapes: D features of a token.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.export.graphs.encoder import EncoderGraph

__all__ = ["Activation", "add_mlp"]

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu", "swiglu_packed"]
"""Kinds of MLPs, as :class:`ehm.config.encoders.VitForm` names them."""

_CUBE = 0.044715
"""Factor of the cube in GELU's approximation by tanh (Hendrycks and Gimpel, 2016)."""
_QUICK_GELU = 1.702
"""Factor by which CLIP's approximation of GELU enlarges the argument of a sigmoid."""


def add_mlp(
    graph: EncoderGraph, name: str, x: str, activation: Activation, scale: NDArray[np.float32] | None = None
) -> str:
    """Add (..., D) -> (..., D), with the features that it gives multiplied by ``scale`` (D,).

    It is gated (SwiGLU) if its parameters are, whatever the ``activation``, and has a norm before its last layer if
    there are parameters of one.
    """
    if f"{name}.fc1_g.weight" in graph.arrays:
        gate = _add_swish(graph, f"{name}.fc1_g", graph.add_linear(f"{name}.fc1_g", x), 1)
        hidden = graph.add_node("Mul", [gate, graph.add_linear(f"{name}.fc1_x", x)], f"{name}/gated")
    else:
        hidden = _add_activation(graph, name, graph.add_linear(f"{name}.fc1", x), activation)
    if f"{name}.norm.weight" in graph.arrays:
        hidden = graph.add_norm(f"{name}.norm", hidden, f"{name}.norm/norm")
    return graph.add_linear(f"{name}.fc2", hidden, scale)


def _add_activation(graph: EncoderGraph, name: str, x: str, activation: Activation) -> str:
    if activation == "gelu_tanh":
        return _add_gelu_by_tanh(graph, name, x)
    if activation == "quick_gelu":
        return _add_swish(graph, name, x, _QUICK_GELU)
    return graph.add_gelu(name, x)


def _add_swish(graph: EncoderGraph, name: str, x: str, factor: float) -> str:
    """Add x sigmoid(factor x)."""
    argument = x
    if factor != 1:
        argument = graph.add_node("Mul", [x, graph.add_number("swish.factor", factor)], f"{name}/argument")
    share = graph.add_node("Sigmoid", [argument], f"{name}/sigmoid")
    return graph.add_node("Mul", [x, share], f"{name}/swish")


def _add_gelu_by_tanh(graph: EncoderGraph, name: str, x: str) -> str:
    """Add x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, in the order that ONNX Runtime recognises.

    The cube is made of products, because not every engine has powers of negative numbers.
    """
    square = graph.add_node("Mul", [x, graph.add_number("gelu.cube", _CUBE)], f"{name}/scaled")
    square = graph.add_node("Mul", [square, x], f"{name}/square")
    factor = graph.add_node("Add", [square, graph.add_number("gelu.one", 1)], f"{name}/factor")
    root = graph.add_node("Mul", [x, graph.add_number("gelu.root_of_share", math.sqrt(2 / math.pi))], f"{name}/root")
    argument = graph.add_node("Mul", [factor, root], f"{name}/argument")
    tanh = graph.add_node("Tanh", [argument], f"{name}/tanh")
    share = graph.add_node("Add", [tanh, "gelu.one"], f"{name}/one")
    half = graph.add_node("Mul", [x, graph.add_number("gelu.half", 0.5)], f"{name}/half")
    return graph.add_node("Mul", [share, half], f"{name}/gelu")
