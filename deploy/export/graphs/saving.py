"""An ONNX graph as a checked file, and what a manifest says about it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import onnx
from onnx import ModelProto, helper

from ehm.deploy.bundle.manifest import ModelRecord
from ehm.errors import ExportError
from ehm.storage.writing import report_write_errors

__all__ = [
    "BATCH",
    "EMBED_LIMIT",
    "count_operators",
    "describe_graph",
    "find_opsets",
    "save",
    "set_lowest_ir_version",
]

BATCH = "batch"
"""Name of the one dynamic dimension."""
EMBED_LIMIT = 2**31 - 2**20
"""Weights of more bytes than this go into a file of their own: protobuf ends at 2 GiB."""


def save(model: ModelProto, path: Path) -> None:
    """Write ``model`` and check the file; raises ExportError if the graph is not valid. Large weights leave ``model``.

    They are stored beside the graph, in a file of their own.
    """
    # of weights alone: the rest of a graph is small
    bytes_of_weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    beside = bytes_of_weights > EMBED_LIMIT
    weights = f"{path.name}.data"
    with report_write_errors(path):
        onnx.save_model(model, path, save_as_external_data=beside, location=weights, size_threshold=1024)
    if beside:  # onnx lets the writer alone read that file
        shutil.copymode(path, path.with_name(weights))
    try:
        # by its path: a model beyond 2 GiB cannot be checked in memory
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        opset = find_opsets(model)[""]
        raise ExportError(
            f"the graph is not valid at opset {opset} ({reason[:300]}); opset 18 may express it"
        ) from error


def set_lowest_ir_version(model: ModelProto) -> None:
    """Give ``model`` the first version of ONNX's file format that has its operator sets: older servers read no later.

    torch's exporter writes version 10 whatever the operator sets, which ONNX Runtime reads from 1.18 on. Operators of
    ONNX Runtime's own are of no version of the format.
    """
    model.ir_version = helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)


def describe_graph(model: ModelProto, file: str) -> ModelRecord:
    """Return the manifest's record of a graph that is stored in ``file``."""
    opsets = find_opsets(model)
    return ModelRecord(file=file, opset=opsets.pop(""), domains=opsets, operators=count_operators(model))


def count_operators(model: ModelProto) -> dict[str, int]:
    """Return how often each operator occurs, by name: with its domain if that is not ONNX's own."""
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        counts[f"{node.domain}.{node.op_type}" if node.domain else node.op_type] += 1
    return dict(sorted(counts.items()))


def find_opsets(model: ModelProto) -> dict[str, int]:
    """Return the versions of the operator sets, by domain; ONNX's own is ``""``."""
    return {entry.domain: entry.version for entry in model.opset_import}
