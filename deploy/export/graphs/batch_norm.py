"""Batch norms of what is no image, written as a product and a sum.

Up to 1.20, ONNX Runtime makes one Gemm of a MatMul and the batch norm behind it, also if the MatMul's input has three
dimensions, which a Gemm does not take: it then refuses the whole network (onnxruntime issue 22512; LeViT).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ehm.deploy.export.graphs.nodes import remove_unused_constants

__all__ = ["write_out_batch_norms"]

_IMAGES = 4
"""Dimensions of images (B, C, H, W), whose norms become part of the convolution in front."""
_DEFAULT_EPSILON = 1e-5


def write_out_batch_norms(model: ModelProto) -> None:
    """Replace each batch norm of fewer dimensions than images have, as far as its parameters are constants."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dimensions = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    nodes: list[NodeProto] = []
    for node in graph.node:
        rank = dimensions.get(node.input[0], _IMAGES) if node.input else _IMAGES
        is_constant = all(name in constants for name in node.input[1:])
        if node.op_type != "BatchNormalization" or rank >= _IMAGES or not is_constant:
            nodes.append(node)
            continue
        factor, shift = _find_factor_and_shift(node, [constants[name] for name in node.input[1:]], rank)
        output = node.output[0]
        for name, values in ((f"{output}/factor", factor), (f"{output}/shift", shift)):
            graph.initializer.append(numpy_helper.from_array(values, name))
        scaled = f"{output}/scaled"
        nodes.append(helper.make_node("Mul", [node.input[0], f"{output}/factor"], [scaled], scaled))
        nodes.append(helper.make_node("Add", [scaled, f"{output}/shift"], [output], node.name))
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused_constants(graph)


def _find_factor_and_shift(
    node: NodeProto, parameters: list[TensorProto], rank: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what a norm of (B, C, ...) multiplies with and adds, both (C, 1, ...)."""
    attributes: dict[str, Any] = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    # in float64, as the product of rounded numbers would be rounded twice
    scale, bias, mean, variance = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in parameters)
    factor = scale / np.sqrt(variance + attributes.get("epsilon", _DEFAULT_EPSILON))
    shape = (-1, *[1] * (rank - 2))
    return factor.astype(np.float32).reshape(shape), (bias - mean * factor).astype(np.float32).reshape(shape)
