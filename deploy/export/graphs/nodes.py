"""Write an ONNX graph node by node, and change nodes that are there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from onnx.helper import get_attribute_value, make_node

__all__ = [
    "BICUBIC",
    "BILINEAR",
    "MICROSOFT",
    "Nodes",
    "add_graph_constant",
    "read_attributes",
    "remove_unused_constants",
]

BICUBIC: dict[str, Any] = {
    "mode": "cubic",
    "cubic_coeff_a": -0.5,
    "antialias": 1,
    "exclude_outside": 1,
    "coordinate_transformation_mode": "half_pixel",
}
"""Resize as Pillow's BICUBIC: Keys's kernel, widened when shrinking and normalised at borders (operator set 18)."""

BILINEAR: dict[str, Any] = {
    "mode": "linear",
    "antialias": 1,
    "exclude_outside": 1,
    "coordinate_transformation_mode": "half_pixel",
}
"""Resize as Pillow's BILINEAR: a triangle, widened when shrinking and normalised at borders (operator set 18)."""

MICROSOFT = "com.microsoft"
"""Domain of the operators that ONNX Runtime has beside ONNX's."""


class Nodes:
    """The nodes and constants of a graph so far; every method adds some and returns the name of what it added.

    Nodes are known by their output: what several outputs of the network need is computed once.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, NodeProto] = {}
        self.constants: dict[str, NDArray[Any]] = {}

    def add_constant(self, name: str, array: NDArray[Any]) -> str:
        """Add ``array`` under a name."""
        self.constants[name] = array
        return name

    def add_integers(self, name: str, *values: int) -> str:
        """Add an int64 vector."""
        return self.add_constant(name, np.array(values, np.int64))

    def add_number(self, name: str, value: float) -> str:
        """Add a float32 scalar."""
        return self.add_constant(name, np.array(value, np.float32))

    def add_node(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Add a node named as its first output; ``domain`` is among the ``attributes`` if it is not ONNX's own.

        Raises ValueError if another node has that name already: it would be lost.
        """
        node = make_node(operator, inputs, outputs, outputs[0], **attributes)
        if self.nodes.setdefault(outputs[0], node) != node:
            raise ValueError(f"two nodes are called {outputs[0]}")
        return outputs[0]

    def store_constants(self, model: ModelProto) -> None:
        """Make the constants initializers of ``model``."""
        for name, array in self.constants.items():  # one by one: protobuf copies no message of 2 GiB
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))


def add_graph_constant(graph: GraphProto, name: str, array: NDArray[Any]) -> str:
    """Add a constant to ``graph`` unless it is there already, and return its name."""
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def read_attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node as plain values; texts are bytes."""
    return {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}


def remove_unused_constants(graph: GraphProto) -> None:
    """Remove the constants that no node of ``graph`` takes any more."""
    used: set[str] = set()
    for node in graph.node:
        used.update(node.input)
    for index in reversed(range(len(graph.initializer))):  # from the end, so that indices stay right
        if graph.initializer[index].name not in used:
            del graph.initializer[index]
