"""A model of timm's as a clean ONNX file: one dynamic dimension (the batch), plain operators, nothing of this machine.

Ascend's converter (ATC) takes operator sets 11 to 18 and has neither Gelu nor Attention; 17 is the first with
LayerNormalization. torch's exporter writes 18 and later, and its way down to 17 fails silently on reductions
(torch 2.14, onnxscript 0.7), so that step is done here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from onnx import AttributeProto, ModelProto, helper, numpy_helper
from torch import nn

from ehm.deploy.export.saving import BATCH
from ehm.errors import ExportError

__all__ = ["make_onnx"]

_WRITTEN_BY_TORCH = 18


def make_onnx(
    module: nn.Module,
    opset: int = 17,
    *,
    image_size: tuple[int, int],
    outputs: Sequence[str],
    batch: int | None = None,
) -> ModelProto:
    """``module`` as a graph: (B, 3, H, W) float32 ``images`` -> ``outputs``; B is ``batch``, or any.

    Raises ExportError where the module cannot be expressed.
    """
    example = torch.zeros(batch or 2, 3, *image_size)  # a batch of one would be taken for a constant
    try:
        with _quiet(), _plain_attention(module), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=max(opset, _WRITTEN_BY_TORCH),
                input_names=["images"],
                output_names=outputs,
                dynamic_shapes=None if batch else ({0: torch.export.Dim(BATCH)},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ExportError(f"{type(module).__name__}: torch.onnx cannot express it: {reason[:300]}") from error
    assert program is not None
    model = program.model_proto
    if opset < _WRITTEN_BY_TORCH:
        _lower_reductions(model)
        _lower_resizes(model)
        next(domain for domain in model.opset_import if not domain.domain).version = opset
    _strip(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about its own internals from the user; errors still raise."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _plain_attention(module: nn.Module) -> Iterator[None]:
    """Let timm's attention run as two matrix products: the fused call becomes shape arithmetic at run time."""
    fused = [part for part in module.modules() if getattr(part, "fused_attn", False) is True]
    for part in fused:
        part.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for part in fused:
            part.fused_attn = True  # type: ignore[assignment]


def _lower_reductions(model: ModelProto) -> None:
    """Opset 18 moved the axes of reductions from an attribute to an input; move them back."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if not node.op_type.startswith("Reduce") or node.op_type == "ReduceSum":  # ReduceSum moved at 13
            continue
        kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
        if len(node.input) > 1:
            axes = numpy_helper.to_array(constants[node.input[1]])
            kept.append(helper.make_attribute("axes", axes.tolist()))
            del node.input[1:]
        del node.attribute[:]
        node.attribute.extend(kept)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in constants.values():
        if tensor.name not in used:
            model.graph.initializer.remove(tensor)


def _lower_resizes(model: ModelProto) -> None:
    """Opset 18 gave resizing new attributes; what they say by default is what opset 17 does."""
    for node in model.graph.node:
        if node.op_type == "Resize":
            kept = [attribute for attribute in node.attribute if not _is_default(attribute)]
            del node.attribute[:]
            node.attribute.extend(kept)


def _is_default(attribute: AttributeProto) -> bool:
    return (attribute.name, helper.get_attribute_value(attribute)) in (
        ("keep_aspect_ratio_policy", b"stretch"),
        ("antialias", 0),
    )


def _strip(model: ModelProto) -> None:
    """Remove the exporter's notes: they hold paths of this machine and make equal models differ."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.ClearField("doc_string")
