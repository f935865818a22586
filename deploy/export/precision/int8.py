"""A float32 graph with its linear layers in int8: the standard operators QuantizeLinear and DequantizeLinear (QDQ).

A linear layer is a MatMul with constant weights. These become int8 with a scale for each output feature; what goes in
becomes uint8 with one scale and zero point, from the smallest and largest values on calibration images. The rest stays
as it is: patch embedding, softmax and the two products around it, norms, GELU, residuals, head.

Weights use seven of the eight bits, from -64 to 64. On x86 processors without VNNI (before Cascade Lake and Zen 4)
ONNX Runtime, and oneDNN below OpenVINO, multiply with VPMADDUBSW, which adds two products of uint8 and int8 in 16 bits
and clips the sum. Two products of eight bits reach 2 * 255 * 127 = 64,770, of seven 2 * 255 * 64 = 32,640, and 16 bits
end at 32,767: with seven bits no sum is clipped, in any session of any engine.

Behind a LayerNormalization a few features can be far larger than all others, and one scale for all would lose the small
ones. As in SmoothQuant (Xiao et al., 2023, eq. 4 with alpha = 1/2), feature j is divided by
f_j = sqrt(max |x_j| / max |w_j|) in the norm's own parameters, and row j of the weights multiplied: the same function
without an operation more.

Shapes: D features in, E features out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ehm.deploy.export.graphs.saving import save
from ehm.deploy.predict.runtime import open_session
from ehm.errors import ExportError
from ehm.storage.writing import report_write_errors

__all__ = ["write_int8"]

Floats = NDArray[np.float32]
Layers = dict[str, list[NodeProto]]
"""Linear layers by the name of what goes in."""
Ranges = dict[str, tuple[Floats, Floats]]
"""Smallest and largest value of each feature, (D,) and (D,)."""
_TINY = np.float32(1e-6)
_LARGEST_WEIGHT = 64
"""The largest int8 weight, which therefore takes seven bits."""


def write_int8(source: Path, path: Path, batches: Iterable[NDArray[Any]]) -> ModelProto:
    """Write the float32 graph ``source`` with linear layers in int8, calibrated on ``batches`` of inputs; check it.

    Raises ExportError where there is no linear layer, or a value is not finite. ``path`` lies beside ``source``.
    """
    model = onnx.load(source)
    graph = model.graph
    layers = _linear_layers(graph)
    if not layers:
        raise ExportError("--int8: the network has no linear layer (MatMul with constant weights) to quantise")
    constants = {tensor.name: tensor for tensor in graph.initializer}
    norms = _norms(graph, layers)
    new: dict[str, NDArray[Any]] = {}
    before: dict[str, list[NodeProto]] = defaultdict(list)  # by the first output of the node behind them
    for name, (low, high) in _ranges(source, path, layers, batches).items():
        weights = [numpy_helper.to_array(constants[node.input[1]]) for node in layers[name]]
        factor = np.ones_like(low)
        if name in norms:
            largest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
            factor = np.sqrt(np.maximum(np.maximum(-low, high), _TINY) / np.maximum(largest, _TINY))
            norm = norms[name]
            for index in range(1, len(norm.input)):  # scale and bias; torch's exporter lets several norms share them
                new[f"{name}/{index}"] = numpy_helper.to_array(constants[norm.input[index]]) / factor
                norm.input[index] = f"{name}/{index}"
        before[layers[name][0].output[0]] += _quantised_input(name, low / factor, high / factor, new)
        for node, weight in zip(layers[name], weights, strict=True):
            before[node.output[0]].append(_quantised_weight(node, weight * factor[:, None], new))
            node.input[0] = f"{name}/dequantised"
    nodes = [added for node in graph.node for added in (*before[node.output[0]], node)]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in new.items())
    save(model, path)
    return model


def _linear_layers(graph: GraphProto) -> Layers:
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    layers: Layers = defaultdict(list)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            layers[node.input[0]].append(node)
    return dict(layers)


def _norms(graph: GraphProto, layers: Layers) -> dict[str, NodeProto]:
    """Norms that feed linear layers and nothing else, by the name of what they give."""
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(output.name for output in graph.output)
    return {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "LayerNormalization" and uses[node.output[0]] == len(layers.get(node.output[0], ()))
    }


def _ranges(source: Path, path: Path, layers: Layers, batches: Iterable[NDArray[Any]]) -> Ranges:
    """Run ``source``, with what goes into ``layers`` as outputs, on ``batches``."""
    model = onnx.load(source, load_external_data=False)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in layers)
    watched = path.with_name(f".{path.name}")  # beside source, where its external data is found
    ranges: Ranges = {}
    try:
        with report_write_errors(path):
            onnx.save_model(model, watched)
        session = open_session(watched)
        for batch in batches:
            for name, values in zip(layers, session.run(list(layers), {model.graph.input[0].name: batch}), strict=True):
                rows = values.reshape(-1, values.shape[-1])
                low, high = rows.min(axis=0), rows.max(axis=0)
                if name in ranges:
                    low, high = np.minimum(low, ranges[name][0]), np.maximum(high, ranges[name][1])
                ranges[name] = low, high
    finally:
        watched.unlink(missing_ok=True)
    for name, limits in ranges.items():
        if not np.isfinite(limits).all():
            raise ExportError(f"--int8: {name} is not finite on the calibration images; the weights may be damaged")
    return ranges


def _quantised_input(name: str, low: Floats, high: Floats, new: dict[str, NDArray[Any]]) -> list[NodeProto]:
    """To uint8 and back, so that 0 is exact; constants go into ``new``."""
    least, most = min(low.min(), 0), max(high.max(), 0)
    scale = np.float32(max((most - least) / 255, _TINY))
    new[f"{name}/scale"], new[f"{name}/zero"] = np.array(scale), np.array(np.rint(-least / scale), np.uint8)
    parameters = [f"{name}/scale", f"{name}/zero"]
    quantised, dequantised = f"{name}/quantised", f"{name}/dequantised"
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [quantised], quantised),
        helper.make_node("DequantizeLinear", [quantised, *parameters], [dequantised], dequantised),
    ]


def _quantised_weight(node: NodeProto, weight: Floats, new: dict[str, NDArray[Any]]) -> NodeProto:
    """Store ``weight`` (D, E) as int8 with E scales, and let ``node`` take that instead of its own."""
    name = f"{node.output[0]}/weight"
    largest = np.abs(weight).max(axis=0)
    scale = np.maximum(largest / _LARGEST_WEIGHT, np.finfo(np.float32).tiny).astype(np.float32)
    new[f"{name}/int8"] = np.rint(weight / scale).astype(np.int8)
    new[f"{name}/scale"], new[f"{name}/zero"] = scale, np.zeros(len(scale), np.int8)
    node.input[1] = name
    return helper.make_node("DequantizeLinear", [f"{name}/int8", f"{name}/scale", f"{name}/zero"], [name], name, axis=1)
