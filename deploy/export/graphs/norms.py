"""Layer normalisation in plain operators, for Ascend.

ONNX Runtime's CANN provider has no LayerNormalization (1.24.4 and the source after it, cann_graph.cc): it would leave
each to the CPU, and run the network in pieces between.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from ehm.deploy.export.graphs.nodes import add_graph_constant, read_attributes

__all__ = ["write_norms_out"]

_AXES_AS_INPUT = 18
"""The first operator set whose reductions take their axes as an input."""
_EPSILON = 1e-5
"""Epsilon of a LayerNormalization that does not say it."""


def write_norms_out(model: ModelProto) -> None:
    """Write every LayerNormalization over the last axis by its definition (Ba et al., 2016)."""
    graph = model.graph
    opset = next(domain.version for domain in model.opset_import if not domain.domain)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "LayerNormalization" and _is_over_last_axis(node):
            nodes += _define_norm(graph, node, opset)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _is_over_last_axis(node: NodeProto) -> bool:
    # further outputs, mean and deviation, are there in training alone
    return read_attributes(node).get("axis", -1) == -1 and len(node.output) == 1


def _define_norm(graph: GraphProto, node: NodeProto, opset: int) -> list[NodeProto]:
    """Return nodes that compute what the norm ``node`` does, and add their constants to ``graph``."""
    output = node.output[0]
    nodes: list[NodeProto] = []

    def add(operator: str, inputs: list[str], part: str) -> str:
        name = f"{output}/{part}"
        nodes.append(helper.make_node(operator, inputs, [name], name))
        return name

    def add_mean(values: str, part: str) -> str:
        name = f"{output}/{part}"
        if opset < _AXES_AS_INPUT:
            nodes.append(helper.make_node("ReduceMean", [values], [name], name, axes=[-1]))
        else:
            axes = add_graph_constant(graph, f"{output}/axes", np.array([-1], np.int64))
            nodes.append(helper.make_node("ReduceMean", [values, axes], [name], name))
        return name

    epsilon = np.array(read_attributes(node).get("epsilon", _EPSILON), np.float32)
    centred = add("Sub", [node.input[0], add_mean(node.input[0], "mean")], "centred")
    variance = add_mean(add("Mul", [centred, centred], "squares"), "variance")
    positive = add("Add", [variance, add_graph_constant(graph, f"{output}/epsilon", epsilon)], "positive")
    value = add("Div", [centred, add("Sqrt", [positive], "deviation")], "normal")
    value = add("Mul", [value, node.input[1]], "scaled")
    if len(node.input) > 2 and node.input[2]:
        value = add("Add", [value, node.input[2]], "shifted")
    # the last node takes the place of the norm
    nodes[-1].output[0] = output
    return nodes
