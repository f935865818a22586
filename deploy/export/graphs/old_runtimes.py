"""Norms that older versions of ONNX Runtime fail on, written in a way that all of them take.

- A batch norm behind a MatMul: up to 1.20, both become one Gemm, also if the MatMul's input has three dimensions, which
  a Gemm does not take, and the whole network is refused (onnxruntime issue 22512; LeViT).
- A layer norm without a bias, which is optional: 1.18 looks for it where several nodes take the norm, and the
  process ends (MetaFormer).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ehm.deploy.export.graphs.nodes import read_attributes, remove_unused_constants

__all__ = ["write_plain_norms"]

_IMAGES = 4
"""Dimensions of images (B, C, H, W), whose batch norms become part of the convolution in front."""
_DEFAULT_EPSILON = 1e-5
"""Epsilon of a BatchNormalization that does not say it, by ONNX."""
_BIAS = 2
"""The number of the bias among a layer norm's inputs."""


def write_plain_norms(model: ModelProto) -> None:
    """Write batch norms of fewer dimensions than images have as a product and a sum, and give layer norms a bias.

    Norms whose parameters are computed stay as they are.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dimensions = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    nodes: list[NodeProto] = []
    for node in graph.node:
        rank = dimensions.get(node.input[0], _IMAGES) if node.input else _IMAGES
        parameters = [constants[name] for name in node.input[1:] if name in constants]
        is_constant = len(parameters) == len(node.input) - 1
        if node.op_type == "BatchNormalization" and rank < _IMAGES and is_constant:
            factor, shift = _find_factor_and_shift(node, parameters, rank)
            graph.initializer.extend([factor, shift])
            scaled = f"{node.output[0]}/scaled"
            nodes.append(helper.make_node("Mul", [node.input[0], factor.name], [scaled], scaled))
            nodes.append(helper.make_node("Add", [scaled, shift.name], node.output, node.name))
            continue
        if node.op_type == "LayerNormalization" and len(node.input) == _BIAS and is_constant:
            zeros = np.zeros_like(numpy_helper.to_array(parameters[0]))
            bias = numpy_helper.from_array(zeros, f"{node.output[0]}/bias")
            graph.initializer.append(bias)
            node.input.append(bias.name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused_constants(graph)


def _find_factor_and_shift(
    node: NodeProto, parameters: list[TensorProto], rank: int
) -> tuple[TensorProto, TensorProto]:
    """Return the constants that a norm of (B, C, ...) multiplies with and adds, both (C, 1, ...)."""
    attributes = read_attributes(node)
    # in float64, so that each constant is rounded once
    scale, bias, mean, variance = (_read_doubles(tensor) for tensor in parameters)
    factor = scale / np.sqrt(variance + attributes.get("epsilon", _DEFAULT_EPSILON))
    shift = bias - mean * factor
    shape = (-1, *[1] * (rank - 2))
    made = []
    for name, values in (("factor", factor), ("shift", shift)):
        made.append(numpy_helper.from_array(values.astype(np.float32).reshape(shape), f"{node.output[0]}/{name}"))
    return made[0], made[1]


def _read_doubles(tensor: TensorProto) -> NDArray[np.float64]:
    return numpy_helper.to_array(tensor).astype(np.float64)
