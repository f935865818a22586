"""A trained network as an ONNX graph, written from its arrays: the same file whatever framework is installed."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from ehm import __version__
from ehm.config import SegmentationConfig
from ehm.config.encoders import SwinSpec
from ehm.deploy.bundle.manifest import Target
from ehm.deploy.export.graphs.descriptor import write_descriptor
from ehm.deploy.export.graphs.encoder import EncoderGraph
from ehm.deploy.export.graphs.nodes import MICROSOFT
from ehm.deploy.export.graphs.norms import write_norms_out
from ehm.deploy.export.graphs.saving import BATCH, set_lowest_ir_version
from ehm.deploy.export.graphs.swin import SwinGraph
from ehm.deploy.export.graphs.upernet import write_scores
from ehm.deploy.export.graphs.vit import GRAPHS
from ehm.models.heads import Output
from ehm.models.pyramid import find_taps
from ehm.models.weights import Weights
from ehm.storage.arrays import take_prefix

__all__ = ["make_graph"]


def make_graph(
    weights: Weights,
    outputs: Sequence[Output],
    opset: int = 17,
    target: Target = "portable",
    dynamic_size: bool = False,
    image_size: tuple[int, int] | None = None,
) -> ModelProto:
    """Return a network as a graph: (B, C, H, W) float32 ``images`` -> ``outputs``.

    ``weights`` are what :func:`ehm.models.assembling.assemble_network` gave. With ``dynamic_size`` (from ``opset`` 18,
    for ViTs whose positions are all added) H and W are any multiples of the patch size, and the positions are resampled
    as :func:`ehm.models.resample.resample_positions` does. ``image_size`` is that of a segmenter, whose encoder may see
    images in another one.
    """
    assert weights.spec is not None
    size: tuple[int | str, ...] = image_size or weights.spec.image_size
    grid: tuple[int | str, ...] = weights.spec.grid
    if dynamic_size:
        # dynamic dimensions have names, which runtimes show
        size = ("height", "width")
        grid = ("rows", "columns")
    graph = _write_nodes(weights, outputs, opset, target, dynamic_size, image_size or weights.spec.image_size)
    width = weights.spec.features
    shapes: dict[str, list[int | str]] = {
        "logits": [len(weights.provenance.labels)],
        "features": [_count_features(weights, width)],
        "patches": [width, *grid],
        "scores": [len(weights.provenance.labels), *size],
    }
    images = _describe_batch("images", [weights.spec.channels, *size])
    described = [_describe_batch(name, shapes[name]) for name in outputs]
    opsets = [helper.make_opsetid("", opset)]
    if any(node.domain for node in graph.nodes.values()):
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    model = helper.make_model(
        helper.make_graph(list(graph.nodes.values()), "ehm", [images], described),
        producer_name="ehm",
        producer_version=__version__,
        opset_imports=opsets,
    )
    set_lowest_ir_version(model)
    graph.store_constants(model)
    if target == "ascend":
        write_norms_out(model)
    return model


def _write_nodes(
    weights: Weights,
    outputs: Sequence[Output],
    opset: int,
    target: Target,
    dynamic_size: bool,
    image_size: tuple[int, int],
) -> EncoderGraph:
    """Return the graph of an encoder with all nodes of the network."""
    kind = weights.provenance.kind
    prefix = ""
    if "scores" in outputs:
        prefix = "pyramid.encoder."
    elif kind == "embedder":
        prefix = "encoder."
    encoder = take_prefix(weights.arrays, prefix)
    # the weights as the encoder alone has them
    inner = Weights(encoder, weights.provenance, weights.spec)
    graph: EncoderGraph
    if isinstance(weights.spec, SwinSpec):
        graph = SwinGraph(inner, outputs, opset)
    else:
        graph = GRAPHS[target](inner, outputs, opset, dynamic_size)
    if "scores" in outputs:
        write_scores(graph, weights.arrays, _find_taps(weights), image_size)
    elif kind == "embedder":
        write_descriptor(graph, weights.arrays)
    else:
        graph.write()
    return graph


def _find_taps(weights: Weights) -> Sequence[int]:
    """Return what the levels of a segmenter's pyramid are taken from."""
    assert weights.checkpoint is not None
    assert weights.spec is not None
    config = SegmentationConfig.model_validate(weights.checkpoint.metadata["config"])
    return find_taps(weights.spec, config.head.taps)


def _count_features(weights: Weights, width: int) -> int:
    """Return the length of ``features``: that of a descriptor, if it is whitened, may differ from the encoder's."""
    if "whitening.weight" in weights.arrays:
        return int(weights.arrays["whitening.weight"].shape[0])
    return width


def _describe_batch(name: str, shape: list[int | str]) -> ValueInfoProto:
    """Return the description of a float32 tensor (B, *shape)."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
