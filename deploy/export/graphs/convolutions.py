"""Convolutions for Ascend's chips whose AI Core has none in float32: those of the series 310P and 310B.

A convolution that cuts an image into patches, whose stride is its kernel, is a product with a matrix, and becomes one,
in float32. Any other computes in float16, between two casts.

Shapes: B images of C channels, h x w patches of p x q pixels, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ehm.deploy.export.graphs.nodes import add_graph_constant, read_attributes, remove_unused_constants

__all__ = ["lacks_float32_convolution", "write_convolutions_out"]

_CHIPS = ("Ascend310P", "Ascend310B")
_OPERATORS = ("Conv", "ConvTranspose")


def lacks_float32_convolution(soc_version: str) -> bool:
    """Return whether the AI Core of a chip has no convolution in float32."""
    return soc_version.startswith(_CHIPS)


def write_convolutions_out(model: ModelProto) -> bool:
    """Replace every convolution with constant weights: by a product with a matrix if it cuts patches, else in float16.

    That of the patches has to come first, from the network's input, whose sizes are known. Returns whether anything
    computes in float16 now.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    images = graph.input[0]
    sizes = [dimension.dim_value for dimension in images.type.tensor_type.shape.dim]
    narrowed = False
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type not in _OPERATORS or node.input[1] not in constants:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        if node.input[0] == images.name and _cuts_patches(node, weight, sizes):
            nodes += _multiply_patches(graph, node, weight, sizes)
        else:
            nodes += _compute_in_float16(graph, node, constants)
            narrowed = True
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused_constants(graph)
    return narrowed


def _cuts_patches(node: NodeProto, weight: NDArray[np.float32], sizes: list[int]) -> bool:
    """Return whether a convolution of images of ``sizes`` (B, C, H, W) moves by its kernel's own size, without rest."""
    attributes = read_attributes(node)
    kernel = list(weight.shape[2:])
    return (
        node.op_type == "Conv"
        and list(attributes.get("strides", [1, 1])) == kernel
        and not any(attributes.get("pads", [0]))
        and set(attributes.get("dilations", [1])) == {1}
        and attributes.get("group", 1) == 1
        and all(size % side == 0 for size, side in zip(sizes[2:], kernel, strict=True))
    )


def _multiply_patches(
    graph: GraphProto, node: NodeProto, weight: NDArray[np.float32], image_shape: list[int]
) -> list[NodeProto]:
    """Return nodes that multiply the pixels of each patch (B, h w, C p q) by the weights, and give (B, D, h, w)."""
    features, channels, p, q = weight.shape
    h = image_shape[2] // p
    w = image_shape[3] // q
    output = node.output[0]
    nodes: list[NodeProto] = []

    def add(operator: str, inputs: list[str], part: str, **attributes: Any) -> str:
        name = f"{output}/{part}"
        nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def reshape(values: str, part: str, *shape: int) -> str:
        return add(
            "Reshape", [values, add_graph_constant(graph, f"{output}/{part}.shape", np.array(shape, np.int64))], part
        )

    matrix = add_graph_constant(graph, f"{output}/matrix", np.ascontiguousarray(weight.reshape(features, -1).T))
    # 0 keeps the batch as it is
    values = reshape(node.input[0], "pixels", 0, channels, h, p, w, q)
    values = add("Transpose", [values], "by_patch", perm=[0, 2, 4, 1, 3, 5])
    values = reshape(values, "patches", 0, h * w, channels * p * q)
    values = add("MatMul", [values, matrix], "product")
    if len(node.input) > 2:
        values = add("Add", [values, node.input[2]], "shifted")
    values = add("Transpose", [values], "by_feature", perm=[0, 2, 1])
    reshape(values, "map", 0, features, h, w)
    # the last node takes the place of the convolution
    nodes[-1].output[0] = output
    return nodes


def _compute_in_float16(graph: GraphProto, node: NodeProto, constants: dict[str, TensorProto]) -> list[NodeProto]:
    """Return the convolution between casts to float16 and back, with its constants in float16."""
    output = node.output[0]
    halves = f"{output}/float16"
    images = f"{output}/input.float16"
    inputs = [images]
    for name in node.input[1:]:
        array = numpy_helper.to_array(constants[name]).astype(np.float16)
        inputs.append(add_graph_constant(graph, f"{name}.float16", array))
    before = helper.make_node("Cast", [node.input[0]], [images], images, to=TensorProto.FLOAT16)
    narrow = NodeProto()
    narrow.CopyFrom(node)
    del narrow.input[:]
    narrow.input.extend(inputs)
    narrow.output[0] = halves
    after = helper.make_node("Cast", [halves], [output], f"{output}/cast", to=TensorProto.FLOAT)
    return [before, narrow, after]
