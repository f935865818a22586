"""A float32 graph in float16. Its inputs and outputs stay float32, and so does what float16 would round too far."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from ehm.deploy.export.graphs.saving import save

__all__ = ["write_float16"]

_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Attention")
"""Operators that take nearly all of the time, and gain by float16."""
_CHOOSING = ("RoiAlign", "NonMaxSuppression", "TopK")
"""Operators that choose by boxes and scores; the converter leaves them in float32."""
_VALUES = {
    "RoiAlign": (0,),
    "Gather": (0,),
    "GatherND": (0,),
    "GatherElements": (0,),
    "ScatterND": (0, 2),
    "Where": (1, 2),
}
"""The inputs of an operator that its output is made of; the others say which of them are taken."""


def write_float16(source: Path, path: Path) -> ModelProto:
    """Write the graph of ``source`` in float16 at ``path``, and return it."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    nodes = onnx.load(source, load_external_data=False).graph.node
    kept = _list_preprocessing(nodes)
    if any(node.op_type in _CHOOSING for node in nodes):
        kept += _list_box_arithmetic(nodes)
    model: ModelProto = convert_float_to_float16(str(source), keep_io_types=True, node_block_list=kept)
    _sort_nodes(model.graph)
    # the converter notes float16 for values that stay float32; ONNX infers the types again
    del model.graph.value_info[:]
    save(model, path)
    return model


def _list_preprocessing(nodes: Iterable[NodeProto]) -> list[str]:
    """Return the names of the nodes before the first convolution, whose sizes and pixels float16 would round."""
    names: list[str] = []
    for node in nodes:
        if node.op_type == "Conv":
            return names
        names.append(node.name)
    return []  # a graph without a convolution has no preprocessing in front of it


def _list_box_arithmetic(nodes: Iterable[NodeProto]) -> list[str]:
    """Return the names of the nodes of a detector that no product follows before boxes are chosen.

    They compute with coordinates, which float16 rounds to whole pixels from 1,024 on.
    """
    wanted: set[str] = set()
    names = []
    for node in reversed(list(nodes)):
        leads_to_product = node.op_type not in _CHOOSING and wanted.intersection(node.output)
        if node.op_type not in _PRODUCTS and not leads_to_product:
            names.append(node.name)
            # of what a map is cut from, a product made the map, and not the boxes
            if node.op_type != "RoiAlign":
                continue
        places = _VALUES.get(node.op_type, range(len(node.input)))
        wanted.update(node.input[place] for place in places)
    return names


def _sort_nodes(graph: GraphProto) -> None:
    """Bring nodes behind those that they take from: the converter puts its casts at the end."""
    known = {""}  # the name of an input that is left out
    for value in (*graph.input, *graph.initializer):
        known.add(value.name)
    waiting = list(graph.node)
    del graph.node[:]
    while waiting:
        ready = []
        for node in waiting:
            if known.issuperset(node.input):
                known.update(node.output)
                ready.append(node)
        if not ready:  # a graph that takes what nothing gives, which the check of the file reports
            ready = waiting
            for node in waiting:
                known.update(node.output)
        graph.node.extend(ready)
        waiting = [node for node in waiting if not known.issuperset(node.output)]
