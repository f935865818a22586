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

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

__all__ = ["InexpressibleError", "lower_to_17"]

_LOWERED = 17
_WRITTEN = 18
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
        replacements = lowering.replace(node)
        for replacement in replacements:
            _check_schema(replacement)
        nodes += replacements
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in lowering.added.items())
    _remove_unused_constants(graph)
    next(domain for domain in model.opset_import if not domain.domain).version = _LOWERED


class _Lowering:
    """Finds the replacement of each node of ``graph``, which stays as it is; ``added`` are constants by name."""

    def __init__(self, graph: GraphProto) -> None:
        self.added: dict[str, NDArray[Any]] = {}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}

    def replace(self, node: NodeProto) -> list[NodeProto]:
        """Nodes of operator set 17 that compute what ``node`` does; none if constants do."""
        if node.domain:
            return [node]
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":  # ReduceSum changed at 13
            return self._replace_reduction(node)
        replace = {"Split": self._replace_split, "Resize": self._replace_resize}.get(node.op_type)
        return [node] if replace is None else replace(node)

    def _replace_reduction(self, node: NodeProto) -> list[NodeProto]:
        """Bring the axes back from the second input to an attribute."""
        attributes = _attributes(node)
        over_nothing = attributes.pop("noop_with_empty_axes", 0)
        inputs = list(node.input)
        axes = self._constant(inputs[1]) if len(inputs) > 1 and inputs[1] else np.array([], np.int64)
        if axes is None:
            raise InexpressibleError(f"{node.op_type} over axes that are computed")
        if axes.size == 0 and over_nothing:
            return [helper.make_node("Identity", inputs[:1], node.output, node.name)]
        if axes.size:  # without any, all axes are reduced
            attributes["axes"] = axes.tolist()
        return [helper.make_node(node.op_type, inputs[:1], node.output, node.name, **attributes)]

    def _replace_split(self, node: NodeProto) -> list[NodeProto]:
        """Leave equal parts to the number of outputs; state the sizes if the last part is smaller."""
        attributes = _attributes(node)
        count = attributes.pop("num_outputs", None)
        if count is None:
            return [node]
        axis = attributes.get("axis", 0)
        shape = self._shape_of(node.input[0])
        total = shape[axis] if shape else ""
        if isinstance(total, str):
            raise InexpressibleError("Split of a dimension whose size is not fixed")
        inputs = [node.input[0]]
        part = -(-total // count)  # rounded up
        if total != part * count:
            sizes = [part] * (count - 1) + [total - part * (count - 1)]
            inputs.append(self._add(f"{node.output[0]}/sizes", np.array(sizes, np.int64)))
        return [helper.make_node("Split", inputs, node.output, node.name, **attributes)]

    def _replace_resize(self, node: NodeProto) -> list[NodeProto]:
        """Leave out what says what operator set 17 does; compute antialiasing here, as far as that is possible."""
        attributes = _attributes(node)
        if attributes.pop("keep_aspect_ratio_policy", b"stretch") != b"stretch":
            raise InexpressibleError("Resize that keeps proportions")
        if not attributes.pop("antialias", 0):
            return [helper.make_node("Resize", node.input, node.output, node.name, **attributes)]
        constant = self._constant(node.input[0])
        if constant is None:
            return self._resize_by_products(node)
        # positions, mostly: resampled once here, they are one more constant
        parameters = [self._constant(name) if name else None for name in node.input[1:]]
        if any(value is None for name, value in zip(node.input[1:], parameters, strict=True) if name):
            raise InexpressibleError("Resize with antialiasing to a size that is computed")
        self._add(node.output[0], _run_resize(node, constant, parameters))
        return []

    def _resize_by_products(self, node: NodeProto) -> list[NodeProto]:
        """Resize (B, C, H, W) by two matrix products.

        Interpolation is linear in the values and separable: Y = R X C, with a matrix for the rows and one for the
        columns. Each is what Resize itself makes of the identity.
        """
        before, after = self._shape_of(node.input[0]), self._shape_of(node.output[0])
        sides = (*before[2:], *after[2:])
        if len(before) != 4 or len(after) != 4 or before[:2] != after[:2] or any(isinstance(s, str) for s in sides):
            raise InexpressibleError("Resize with antialiasing between sizes that are not fixed")
        scales = self._constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        image, output = node.input[0], node.output[0]
        rows = self._add(f"{output}/rows", _resize_matrix(node, 2, before, after, scales))
        columns = self._add(f"{output}/columns", _resize_matrix(node, 3, before, after, scales))
        return [
            helper.make_node("MatMul", [image, columns], [f"{output}/wide"], f"{output}/wide"),
            helper.make_node("MatMul", [rows, f"{output}/wide"], [output], node.name),
        ]

    def _add(self, name: str, array: NDArray[Any]) -> str:
        self.added[name] = array
        return name

    def _constant(self, name: str) -> NDArray[Any] | None:
        """The value of a constant; None if ``name`` is computed by the graph."""
        if name in self.added:
            return self.added[name]
        return numpy_helper.to_array(self._constants[name]) if name in self._constants else None

    def _shape_of(self, name: str) -> Shape:
        """The shape of a tensor; () if it is not known."""
        constant = self._constants.get(name)
        return self._shapes.get(name, ()) if constant is None else tuple(constant.dims)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim
    )


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _check_schema(node: NodeProto) -> None:
    """Raise InexpressibleError if operator set 17 lacks the operator, one of its attributes or one of its inputs."""
    if node.domain:
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, _LOWERED)
    except onnx.defs.SchemaError:
        raise InexpressibleError(f"operator {node.op_type}") from None
    unknown = [attribute.name for attribute in node.attribute if attribute.name not in schema.attributes]
    if unknown:
        raise InexpressibleError(f"{node.op_type} with {unknown[0]}")
    if len(node.input) > schema.max_input:
        raise InexpressibleError(f"{node.op_type} with {len(node.input)} inputs")
    if node.op_type.startswith("Scatter") and _attributes(node).get("reduction") in (b"max", b"min"):
        raise InexpressibleError(f"{node.op_type} that keeps the largest or smallest value")


def _resize_matrix(
    node: NodeProto, axis: int, before: Shape, after: Shape, scales: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """The matrix that resizes ``axis``: (H', H) for the rows, axis 2, and (W, W') for the columns, axis 3."""
    size = int(before[axis])
    identity = np.eye(size, dtype=np.float32)[None, None]
    wanted: NDArray[Any]
    if scales is None:
        wanted = np.array(identity.shape, np.int64)
        wanted[axis] = after[axis]
        parameters = [None, None, wanted]
    else:  # which need not be the quotient of the sizes
        wanted = np.ones(4, np.float32)
        wanted[axis] = scales[axis]
        parameters = [None, wanted]
    return _run_resize(node, identity, parameters)[0, 0]


def _run_resize(node: NodeProto, array: NDArray[Any], parameters: list[NDArray[Any] | None]) -> NDArray[Any]:
    """Run a Resize node alone on ``array``; ``parameters`` are its roi, scales and sizes, as far as it has them."""
    names = ["" if value is None else f"parameter.{index}" for index, value in enumerate(parameters)]
    constants = [
        numpy_helper.from_array(value, name) for name, value in zip(names, parameters, strict=True) if value is not None
    ]
    alone = NodeProto()
    alone.CopyFrom(node)
    alone.input[:] = ["array", *names]
    alone.output[:] = ["resized"]
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    given = helper.make_tensor_value_info("array", kind, array.shape)
    wanted = helper.make_tensor_value_info("resized", kind, [None] * array.ndim)
    graph = helper.make_graph([alone], "resize", [given], [wanted], constants)
    opsets = [helper.make_opsetid("", _WRITTEN)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (resized,) = session.run(None, {"array": array})
    result: NDArray[Any] = resized
    return result


def _remove_unused_constants(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]
