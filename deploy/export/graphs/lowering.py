"""Lower a graph from operator set 18, the first that torch's exporter writes, to operator set 17.

17 is the first operator set with LayerNormalization, and older servers read it. The exporter's own way down fails
silently on reductions (torch 2.14, onnxscript 0.7). What ONNX changed in between
(https://github.com/onnx/onnx/blob/main/docs/Changelog.md, version 18):

- reductions take their axes as an input, which was an attribute;
- Split has ``num_outputs``, how many equal parts to make;
- Resize has ``antialias``, ``axes`` and ``keep_aspect_ratio_policy``;
- new operators and new inputs, none of which is rewritten here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from ehm.deploy.export.graphs.nodes import read_attributes, remove_unused_constants

__all__ = ["InexpressibleError", "lower_to_17"]

_LOWERED = 17
"""The operator set that a graph is brought down to."""
_WRITTEN = 18
"""The operator set that torch's exporter writes."""
Shape = tuple[int | str, ...]
"""Sizes of a tensor's dimensions; a text names a dynamic one."""


class InexpressibleError(Exception):
    """Operator set 17 lacks what a graph needs; the message names it, as the object of a sentence."""


def lower_to_17(model: ModelProto) -> None:
    """Rewrite ``model`` with the operators of operator set 17.

    Raises InexpressibleError, and leaves the model as it is, if a node has no equivalent there.
    """
    graph = model.graph
    lowering = _Lowering(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        replacements = lowering.replace_node(node)
        for replacement in replacements:
            _check_schema(replacement)
        nodes += replacements
    # nothing was changed so far, so that an error leaves the model whole
    del graph.node[:]
    graph.node.extend(nodes)
    for name, array in lowering.added.items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    remove_unused_constants(graph)
    for domain in model.opset_import:
        if not domain.domain:
            domain.version = _LOWERED


class _Lowering:
    """The search for the replacement of each node of ``graph``, which stays as it is; ``added`` are new constants."""

    def __init__(self, graph: GraphProto) -> None:
        self.added: dict[str, NDArray[Any]] = {}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._shapes: dict[str, Shape] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            self._shapes[value.name] = _read_shape(value)

    def replace_node(self, node: NodeProto) -> list[NodeProto]:
        """Return nodes of operator set 17 that compute what ``node`` does; none if a constant takes its place."""
        if node.domain:  # operators of other domains have versions of their own
            return [node]
        if node.op_type == "Split":
            return self._replace_split(node)
        if node.op_type == "Resize":
            return self._replace_resize(node)
        # ReduceSum has taken its axes as an input since operator set 13
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            return self._replace_reduction(node)
        return [node]

    def _replace_reduction(self, node: NodeProto) -> list[NodeProto]:
        """Bring the axes back from the second input to an attribute."""
        attributes = read_attributes(node)
        keeps_without_axes = attributes.pop("noop_with_empty_axes", 0)
        inputs = list(node.input)
        axes: NDArray[Any] | None = np.array([], np.int64)
        if len(inputs) > 1 and inputs[1]:
            axes = self._find_constant(inputs[1])
        if axes is None:
            raise InexpressibleError(f"{node.op_type} over axes that are computed")
        if axes.size == 0 and keeps_without_axes:
            return [helper.make_node("Identity", inputs[:1], node.output, node.name)]
        if axes.size:  # without any, all axes are reduced
            attributes["axes"] = axes.tolist()
        return [helper.make_node(node.op_type, inputs[:1], node.output, node.name, **attributes)]

    def _replace_split(self, node: NodeProto) -> list[NodeProto]:
        """Leave out the number of equal parts, which follows from the outputs; state sizes if the last is smaller."""
        attributes = read_attributes(node)
        count = attributes.pop("num_outputs", None)
        if count is None:
            return [node]
        axis = attributes.get("axis", 0)
        shape = self._find_shape(node.input[0])
        total = shape[axis] if shape else ""
        if isinstance(total, str):
            raise InexpressibleError("Split of a dimension whose size is not fixed")
        inputs = [node.input[0]]
        part = math.ceil(total / count)
        if total != part * count:
            last = total - part * (count - 1)
            sizes = np.array([part] * (count - 1) + [last], np.int64)
            inputs.append(self._add_constant(f"{node.output[0]}/sizes", sizes))
        return [helper.make_node("Split", inputs, node.output, node.name, **attributes)]

    def _replace_resize(self, node: NodeProto) -> list[NodeProto]:
        """Leave out attributes that say what operator set 17 does; compute antialiasing here, if that is possible."""
        attributes = read_attributes(node)
        if attributes.pop("keep_aspect_ratio_policy", b"stretch") != b"stretch":
            raise InexpressibleError("Resize that keeps proportions")
        if not attributes.pop("antialias", 0):
            return [helper.make_node("Resize", node.input, node.output, node.name, **attributes)]
        array = self._find_constant(node.input[0])
        if array is None:
            return self._resize_by_products(node)
        # positions, mostly: resampled once here, they are one more constant
        parameters = []
        for name in node.input[1:]:
            value = self._find_constant(name) if name else None
            if name and value is None:
                raise InexpressibleError("Resize with antialiasing to a size that is computed")
            parameters.append(value)
        self._add_constant(node.output[0], _run_resize(node, array, parameters))
        return []

    def _resize_by_products(self, node: NodeProto) -> list[NodeProto]:
        """Resize (B, C, H, W) by two matrix products.

        Interpolation is linear in the values and separable: Y = R X C, with a matrix for the rows and one for the
        columns. Each is what Resize itself makes of the identity.
        """
        image = node.input[0]
        output = node.output[0]
        before = self._find_shape(image)
        after = self._find_shape(output)
        fixed = all(isinstance(side, int) for side in (*before[2:], *after[2:]))
        if len(before) != 4 or len(after) != 4 or before[:2] != after[:2] or not fixed:
            raise InexpressibleError("Resize with antialiasing between sizes that are not fixed")
        scales = None
        if len(node.input) > 2 and node.input[2]:
            scales = self._find_constant(node.input[2])
        rows = self._add_constant(f"{output}/rows", _resize_matrix(node, 2, before, after, scales))
        columns = self._add_constant(f"{output}/columns", _resize_matrix(node, 3, before, after, scales))
        wide = f"{output}/wide"
        return [
            helper.make_node("MatMul", [image, columns], [wide], wide),
            helper.make_node("MatMul", [rows, wide], [output], node.name),
        ]

    def _add_constant(self, name: str, array: NDArray[Any]) -> str:
        self.added[name] = array
        return name

    def _find_constant(self, name: str) -> NDArray[Any] | None:
        """Return the value of a constant; None if ``name`` is computed by the graph."""
        if name in self.added:
            return self.added[name]
        if name in self._constants:
            return numpy_helper.to_array(self._constants[name])
        return None

    def _find_shape(self, name: str) -> Shape:
        """Return the shape of a tensor; () if it is not known."""
        if name in self._constants:
            return tuple(self._constants[name].dims)
        return self._shapes.get(name, ())


def _read_shape(value: onnx.ValueInfoProto) -> Shape:
    """Return the shape of a value; a dimension without a size or a name is ``?``."""
    shape: list[int | str] = []
    for dimension in value.type.tensor_type.shape.dim:
        if dimension.HasField("dim_value"):
            shape.append(dimension.dim_value)
        else:
            shape.append(dimension.dim_param or "?")
    return tuple(shape)


def _check_schema(node: NodeProto) -> None:
    """Raise InexpressibleError if operator set 17 lacks the operator, one of its attributes or one of its inputs."""
    if node.domain:
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, _LOWERED)
    except onnx.defs.SchemaError:
        raise InexpressibleError(f"operator {node.op_type}") from None
    for attribute in node.attribute:
        if attribute.name not in schema.attributes:
            raise InexpressibleError(f"{node.op_type} with {attribute.name}")
    if len(node.input) > schema.max_input:
        raise InexpressibleError(f"{node.op_type} with {len(node.input)} inputs")
    # the attribute is older than these two values of it, which the schema does not list
    if node.op_type.startswith("Scatter") and read_attributes(node).get("reduction") in (b"max", b"min"):
        raise InexpressibleError(f"{node.op_type} that keeps the largest or smallest value")


def _resize_matrix(
    node: NodeProto, axis: int, before: Shape, after: Shape, scales: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return the matrix that resizes ``axis``: (H', H) for the rows, axis 2, and (W, W') for the columns, axis 3."""
    identity = np.eye(int(before[axis]), dtype=np.float32)[np.newaxis, np.newaxis]
    if scales is None:
        sizes = np.array(identity.shape, np.int64)
        sizes[axis] = after[axis]
        parameters: list[NDArray[Any] | None] = [None, None, sizes]
    else:  # they need not be the quotient of the sizes
        own_scales = np.ones(4, np.float32)
        own_scales[axis] = scales[axis]
        parameters = [None, own_scales]
    matrix: NDArray[np.float32] = _run_resize(node, identity, parameters)[0, 0]
    return matrix


def _run_resize(node: NodeProto, array: NDArray[Any], parameters: list[NDArray[Any] | None]) -> NDArray[Any]:
    """Run a Resize node alone on ``array``; ``parameters`` are its roi, scales and sizes, as far as it has them."""
    names = []
    constants = []
    for index, value in enumerate(parameters):
        if value is None:
            names.append("")
            continue
        names.append(f"parameter.{index}")
        constants.append(numpy_helper.from_array(value, names[-1]))
    alone = NodeProto()
    alone.CopyFrom(node)
    alone.input[:] = ["array", *names]
    alone.output[:] = ["resized"]
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    given = helper.make_tensor_value_info("array", dtype, array.shape)
    wanted = helper.make_tensor_value_info("resized", dtype, [None] * array.ndim)
    graph = helper.make_graph([alone], "resize", [given], [wanted], constants)
    opsets = [helper.make_opsetid("", _WRITTEN)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (resized,) = session.run(None, {"array": array})
    result: NDArray[Any] = resized
    return result
