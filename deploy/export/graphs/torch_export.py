"""A torch module as a clean ONNX graph: one dynamic dimension (the batch), plain operators, nothing of this machine.

Ascend's converter (ATC) takes operator sets 11 to 18 and has neither Gelu nor Attention. torch's exporter writes 18 and
later; :mod:`ehm.deploy.export.graphs.lowering` brings a graph down to 17.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from onnx import ModelProto
from torch import nn

from ehm.console import console
from ehm.deploy.export.graphs.lowering import InexpressibleError, lower_to_17
from ehm.deploy.export.graphs.old_runtimes import write_plain_norms
from ehm.deploy.export.graphs.saving import BATCH, set_lowest_ir_version
from ehm.errors import ExportError

__all__ = ["make_onnx"]

_WRITTEN_BY_TORCH = 18
"""The lowest operator set that torch's exporter writes."""
_LOGGERS = ("onnx_ir", "onnxscript")
"""Loggers of the exporter's own packages."""


def make_onnx(
    module: nn.Module,
    opset: int = 17,
    *,
    image_size: tuple[int, int],
    outputs: Sequence[str],
    batch: int | None = None,
    raise_opset: bool = False,
    channels: int = 3,
) -> ModelProto:
    """Return ``module`` as a graph: (B, ``channels``, H, W) float32 ``images`` -> ``outputs``; B is ``batch``, or any.

    With ``raise_opset`` a module that operator set 17 cannot express is written in 18 instead. Raises ExportError if
    the module cannot be expressed.
    """
    example = torch.zeros(batch or 2, channels, *image_size)  # a batch of one would be taken for a constant
    dynamic_shapes = None if batch else ({0: torch.export.Dim(BATCH)},)
    try:
        with _silence_exporter(), _unfuse_attention(module), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=max(opset, _WRITTEN_BY_TORCH),
                input_names=["images"],
                output_names=outputs,
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ExportError(f"{type(module).__name__}: torch.onnx cannot express it: {reason[:300]}") from error
    assert program is not None
    model = program.model_proto
    write_plain_norms(model)
    if opset < _WRITTEN_BY_TORCH:
        _lower_opset(model, module, raise_opset)
    set_lowest_ir_version(model)
    _strip_notes(model)
    return model


def _lower_opset(model: ModelProto, module: nn.Module, raise_opset: bool) -> None:
    """Bring a graph down to operator set 17; with ``raise_opset`` leave one that cannot be, and say so."""
    try:
        lower_to_17(model)
    except InexpressibleError as missing:
        if not raise_opset:
            raise ExportError(
                f"{type(module).__name__}: operator set 17 has no {missing}; leave opset out, or --set opset=18"
            ) from None
        console.print(f"Written in opset {_WRITTEN_BY_TORCH}: opset 17 has no {missing}", markup=False)


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Keep the exporter's remarks about its own internals from the user; errors still raise."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # they concern torch's own code, and warnings are errors in our tests
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _unfuse_attention(module: nn.Module) -> Iterator[None]:
    """Let timm's attention run as two matrix products: the fused call becomes shape arithmetic at run time."""
    fused = []
    for part in module.modules():
        if getattr(part, "fused_attn", False) is True:
            fused.append(part)
            part.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for part in fused:
            part.fused_attn = True  # type: ignore[assignment]


def _strip_notes(model: ModelProto) -> None:
    """Remove the exporter's notes: they hold paths of this machine and make equal models differ."""
    graph = model.graph
    # every level of a graph may carry notes
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.ClearField("doc_string")
