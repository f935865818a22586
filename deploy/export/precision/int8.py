"""A float32 graph with its linear layers in int8: the standard operators QuantizeLinear and DequantizeLinear (QDQ).

A linear layer is a MatMul with constant weights. These become int8 with a scale for each output feature; what goes in
becomes uint8 with one scale and zero point, from the smallest and largest values on calibration images. The rest stays
as it is: patch embedding, softmax and the two products around it, norms, GELU, residuals, head.

Weights use seven of the eight bits, from -64 to 64. On x86 processors without VNNI (before Cascade Lake and Zen 4)
ONNX Runtime, and oneDNN below OpenVINO, multiply with VPMADDUBSW, which adds two products of uint8 and int8 in 16 bits
and clips the sum. Two products of eight bits reach 2 * 255 * 127 = 64,770, of seven 2 * 255 * 64 = 32,640, and 16 bits
end at 32,767: with seven bits no sum is clipped, in any session of any engine.

Behind a norm a few features can be far larger than all others, and one scale for all would lose the small
ones. As in SmoothQuant (Xiao et al., 2023, eq. 4 with alpha = 1/2), feature j is divided by
f_j = sqrt(max |x_j| / max |w_j|) in the norm's own parameters, and row j of the weights multiplied: the same function
without an operation more.

Shapes: D features in, E features out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ehm.deploy.export.graphs.nodes import remove_unused_constants
from ehm.deploy.export.graphs.saving import save
from ehm.deploy.predict.runtime import open_session
from ehm.errors import ExportError
from ehm.storage.writing import report_write_errors

__all__ = ["write_int8"]

Floats = NDArray[np.float32]
Layers = dict[str, list[NodeProto]]
"""Linear layers by the name of what goes in."""
Parameters = list[tuple[NodeProto, int]]
"""Parameters of a norm: the nodes that take them, and their places among the inputs."""
Ranges = dict[str, tuple[Floats, Floats]]
"""Smallest and largest value of each feature, (D,) and (D,)."""
_TINY = np.float32(1e-6)
"""Least scale, and least value of a feature or a weight: a feature that is always 0 would divide by 0."""
_LARGEST_WEIGHT = 64
"""The largest int8 weight, which therefore takes seven bits."""


def write_int8(source: Path, path: Path, batches: Iterable[NDArray[Any]]) -> ModelProto:
    """Write the float32 graph ``source`` with linear layers in int8, calibrated on ``batches`` of inputs; check it.

    Raises ExportError if there is no linear layer, or a value is not finite. ``path`` lies beside ``source``.
    """
    model = onnx.load(source)
    graph = model.graph
    layers = _find_linear_layers(graph)
    if not layers:
        raise ExportError("--int8: the network has no linear layer (MatMul with constant weights) to quantise")
    quantiser = _Quantiser(graph)
    # only such a norm can be rescaled without changing anything else
    norms = _find_feeding_norms(graph, layers)
    for name, (low, high) in _measure_ranges(source, path, layers, batches).items():
        quantiser.quantise_layers(name, layers[name], norms.get(name, []), low, high)
    quantiser.apply()
    save(model, path)
    return model


class _Quantiser:
    """The changes to a graph: nodes that come before others, and constants, by name."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._added: dict[str, NDArray[Any]] = {}
        self._before: dict[str, list[NodeProto]] = defaultdict(list)  # by the first output of the node behind them

    def quantise_layers(self, name: str, layers: list[NodeProto], norm: Parameters, low: Floats, high: Floats) -> None:
        """Quantise the linear layers that take ``name`` (..., D), whose features lie between ``low`` and ``high``.

        ``norm`` are the parameters of the norm in front, none if there is no norm.
        """
        weights = [numpy_helper.to_array(self._constants[node.input[1]]) for node in layers]
        # without a norm in front, features keep their sizes
        factor = np.ones_like(low)
        if norm:
            factor = _compute_smoothing_factor(weights, low, high)
            # scale and bias get names of their own: torch's exporter lets several norms share them
            for number, (node, index) in enumerate(norm, 1):
                parameter = f"{name}/{number}"
                self._added[parameter] = numpy_helper.to_array(self._constants[node.input[index]]) / factor
                node.input[index] = parameter
        first = layers[0].output[0]
        self._before[first] += self._quantise_input(name, low / factor, high / factor)
        for node, weight in zip(layers, weights, strict=True):
            self._before[node.output[0]].append(self._quantise_weight(node, weight * factor[:, None]))
            node.input[0] = f"{name}/dequantised"

    def apply(self) -> None:
        """Put the new nodes in front of theirs, and replace the constants that no node takes any more."""
        graph = self._graph
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes += self._before[node.output[0]]
            nodes.append(node)
        del graph.node[:]
        graph.node.extend(nodes)
        # float32 matrices that int8 replaced would double the size of the file
        remove_unused_constants(graph)
        for name, array in self._added.items():
            graph.initializer.append(numpy_helper.from_array(array, name))

    def _quantise_input(self, name: str, low: Floats, high: Floats) -> list[NodeProto]:
        """Return nodes that turn ``name`` into uint8 and back."""
        # the range holds 0, which therefore stays exact
        least = min(low.min(), 0)
        most = max(high.max(), 0)
        scale = np.float32(max((most - least) / 255, _TINY))
        self._added[f"{name}/scale"] = np.array(scale)
        self._added[f"{name}/zero"] = np.array(np.rint(-least / scale), np.uint8)
        parameters = [f"{name}/scale", f"{name}/zero"]
        quantised = f"{name}/quantised"
        dequantised = f"{name}/dequantised"
        return [
            helper.make_node("QuantizeLinear", [name, *parameters], [quantised], quantised),
            helper.make_node("DequantizeLinear", [quantised, *parameters], [dequantised], dequantised),
        ]

    def _quantise_weight(self, node: NodeProto, weight: Floats) -> NodeProto:
        """Store ``weight`` (D, E) as int8 with E scales, and let ``node`` take that instead of its own."""
        name = f"{node.output[0]}/weight"
        largest = np.abs(weight).max(axis=0)
        # a column of zeros would have no scale
        scale = np.maximum(largest / _LARGEST_WEIGHT, np.finfo(np.float32).tiny).astype(np.float32)
        self._added[f"{name}/int8"] = np.rint(weight / scale).astype(np.int8)
        self._added[f"{name}/scale"] = scale
        self._added[f"{name}/zero"] = np.zeros(len(scale), np.int8)
        node.input[1] = name
        inputs = [f"{name}/int8", f"{name}/scale", f"{name}/zero"]
        return helper.make_node("DequantizeLinear", inputs, [name], name, axis=1)


def _compute_smoothing_factor(weights: list[Floats], low: Floats, high: Floats) -> Floats:
    """Return f (D,) of SmoothQuant: the root of each feature's largest value over its largest weight."""
    largest_weight = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    largest_value = np.maximum(-low, high)
    factor: Floats = np.sqrt(np.maximum(largest_value, _TINY) / np.maximum(largest_weight, _TINY))
    return factor


def _find_linear_layers(graph: GraphProto) -> Layers:
    """Return the MatMul nodes with constant weights, by the name of what goes in."""
    # attention multiplies activations by MatMul too; those stay in float32
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    layers: Layers = defaultdict(list)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            layers[node.input[0]].append(node)
    return dict(layers)


def _find_feeding_norms(graph: GraphProto, layers: Layers) -> dict[str, Parameters]:
    """Return the parameters of norms that feed linear layers and nothing else, by the name of their output.

    A norm is one operator, or several that end with a scale for each feature, and with a bias behind it if it has one.
    """
    uses = Counter(output.name for output in graph.output)
    for node in graph.node:
        uses.update(node.input)
    makers = {node.output[0]: node for node in graph.node}
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1 and tensor.dims[0] > 1}
    norms = {}
    for name, fed in layers.items():
        if name in makers and uses[name] == len(fed):
            parameters = _find_parameters(makers[name], makers, vectors, uses)
            if parameters:
                norms[name] = parameters
    return norms


def _find_parameters(
    node: NodeProto, makers: Mapping[str, NodeProto], vectors: Collection[str], uses: Mapping[str, int]
) -> Parameters:
    """Return the ``vectors`` that scale and shift what ``node`` gives; none if it is not the end of a norm."""
    if node.op_type == "LayerNormalization":
        return [(node, index) for index in range(1, len(node.input))]
    if node.op_type not in ("Add", "Mul"):
        return []
    places = [index for index, name in enumerate(node.input) if name in vectors]
    if len(places) != 1:
        return []
    own = (node, places[0])
    if node.op_type == "Mul":
        return [own]
    scaled = node.input[1 - places[0]]
    # a sum becomes smaller as a whole only if both of its parts do
    if scaled not in makers or makers[scaled].op_type != "Mul" or uses[scaled] != 1:
        return []
    scale = _find_parameters(makers[scaled], makers, vectors, uses)
    return [*scale, own] if scale else []


def _measure_ranges(source: Path, path: Path, layers: Layers, batches: Iterable[NDArray[Any]]) -> Ranges:
    """Run ``source`` on ``batches``, with the inputs of ``layers`` as outputs, and return their ranges."""
    model = onnx.load(source, load_external_data=False)
    for name in layers:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    images = model.graph.input[0].name
    watched = path.with_name(f".{path.name}")  # beside source, so that its external data is found
    ranges: Ranges = {}
    try:
        with report_write_errors(path):
            onnx.save_model(model, watched)
        session = open_session(watched)
        for batch in batches:
            found = session.run(list(layers), {images: batch})
            for name, values in zip(layers, found, strict=True):
                rows = values.reshape(-1, values.shape[-1])
                low = rows.min(axis=0)
                high = rows.max(axis=0)
                if name in ranges:
                    low = np.minimum(low, ranges[name][0])
                    high = np.maximum(high, ranges[name][1])
                ranges[name] = (low, high)
    finally:
        watched.unlink(missing_ok=True)
    for name, limits in ranges.items():
        if not np.isfinite(limits).all():
            raise ExportError(f"--int8: {name} is not finite on the calibration images; the weights may be damaged")
    return ranges
