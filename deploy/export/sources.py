"""Decide how a model is exported: what ehm writes from its arrays, with any framework; the rest by torch."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ehm.config import ExportConfig, ModelSource
from ehm.config.encoders import VitSpec
from ehm.deploy.export.exportable import EyesExportable, ImageExportable, SegmenterExportable
from ehm.errors import BackendError, CheckpointError, ConfigError
from ehm.installation import build_install_command
from ehm.models.assembling import assemble_network, find_window
from ehm.models.heads import Head, Reference, list_outputs
from ehm.models.opening import ReadFile, names_weights, open_model, read_weights_file
from ehm.models.weights import Weights

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["prepare_export", "require_packages"]

_FRAMEWORKS = {"torch": ("torch", "timm"), "mindspore": ("mindspore",)}
"""Frameworks that a file can be compared with, by their backends, and the packages that they take."""
_KINDS: dict[str, type[ImageExportable]] = {"scores": SegmenterExportable, "visual_tokens": EyesExportable}
"""The kinds of networks that give an output which no other does."""


def prepare_export(source: ModelSource, head: Head) -> ImageExportable:
    """Open the model that ``source.init`` names, once, and decide how to export it.

    ``head`` and the errors are those of :func:`ehm.models.assembling.assemble_network`. Raises BackendError if no
    framework is there to compare with, or a model that torch writes lacks what builds it.
    """
    framework = _find_framework()
    read_file: ReadFile = read_weights_file
    if framework == "torch":
        from ehm.backends.torch.models.torch_file import read_arrays as read_file
    if not names_weights(source):
        return _prepare_with_torch(source, head, None)
    if not Path(source.init).exists():
        raise CheckpointError(
            f"{source.init}: no checkpoint there; expected a run's output folder, a folder step-NNNNNNNN, a file of "
            "weights or timm:NAME"
        )
    weights = open_model(source, read_file)
    # what ehm writes becomes the same file with any framework, and without torch's exporter
    network = assemble_network(weights, source, head)
    if network is None:
        return _prepare_with_torch(source, head, weights)
    if framework is None:
        raise BackendError(
            "ehm export compares the file with what a framework computes, and neither torch nor MindSpore is there; "
            f"{build_install_command('torch')} or {build_install_command('mindspore')} installs one"
        )
    return _prepare_network(network, weights, source, head, framework)


def require_packages(extras: str, *packages: str) -> None:
    """Raise BackendError that names those of ``packages`` that are not installed, and the extras that bring them.

    If ``packages`` name no framework and none is installed, the error names one too: it would be missed next.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if not missing:
        return
    ways = [extras]
    if "torch" not in packages and _find_framework() is None:
        missing.append("torch or MindSpore")
        ways = [f"{framework},{extras}" for framework in _FRAMEWORKS]
    commands = " or ".join(build_install_command(way) for way in ways)
    raise BackendError(f"ehm export needs {', '.join(missing)}; {commands} installs what is missing")


def _find_framework() -> str | None:
    for name, packages in _FRAMEWORKS.items():
        if all(map(find_spec, packages)):
            return name
    return None


def _prepare_network(
    network: Weights, weights: Weights, source: ModelSource, head: Head, framework: str
) -> ImageExportable:
    """Prepare the export of ``network``, which was assembled from ``weights``."""
    from ehm.deploy.export.graphs.network import make_graph
    from ehm.deploy.export.graphs.vit import can_fuse_attention, can_take_any_size

    spec = network.spec
    assert spec is not None
    kind = ImageExportable
    outputs = list_outputs(head, bool(network.provenance.labels))
    image_size = spec.image_size
    if network.provenance.kind == "segmenter" and head == "auto":
        kind = SegmenterExportable
        outputs = ("scores",)
        image_size = find_window(weights, source)
    # descriptors and segmenters have their encoders' graphs, but heads of their own
    is_encoder = network.provenance.kind != "embedder" and outputs != ("scores",)
    takes_any_size = is_encoder and isinstance(spec, VitSpec) and can_take_any_size(spec)
    is_plain_vit = is_encoder and isinstance(spec, VitSpec) and spec.is_plain
    if framework == "torch" and not is_plain_vit:
        reference = _compute_with_torch(source, head, weights)
    else:
        module = import_module(f"ehm.backends.{framework}.export.module")
        reference = module.build_reference(network, outputs, image_size)

    def make(config: ExportConfig) -> ModelProto:
        if config.dynamic_size and not takes_any_size:
            raise _refuse_any_size(network.provenance.origin)
        return make_graph(network, outputs, config.opset, config.target, config.dynamic_size, image_size)

    return kind(
        network.provenance,
        image_size,
        outputs,
        make,
        reference,
        packages=_FRAMEWORKS[framework],
        checkpoint=network.checkpoint,
        fuses=isinstance(spec, VitSpec) and can_fuse_attention(spec),
        patch_size=spec.stride if takes_any_size else None,
    )


def _compute_with_torch(source: ModelSource, head: Head, weights: Weights) -> Reference:
    """Return torch's computation of what ``source`` names, built by timm's classes from the ``weights`` as they are."""
    from ehm.backends.torch.export.module import compute_with_torch, load_module, make_network

    return compute_with_torch(make_network(load_module(source, head, weights), head))


def _refuse_any_size(origin: str) -> ConfigError:
    return ConfigError(
        f"dynamic_size: {origin} is no ViT of ours with added positions, which the graph could resample; leave it out"
    )


def _prepare_with_torch(source: ModelSource, head: Head, weights: Weights | None) -> ImageExportable:
    packages = ("torch", "timm", "onnxscript")
    require_packages("torch,export", *packages)
    from ehm.backends.torch.export.module import compute_with_torch, load_module, make_network
    from ehm.deploy.export.graphs.norms import write_norms_out
    from ehm.deploy.export.graphs.torch_export import make_onnx

    loaded = load_module(source, head, weights)
    network = make_network(loaded, head)
    reference = compute_with_torch(network)
    compute, _ = reference
    # an output that the network cannot give is named here, before torch.onnx fails in other words
    channels = loaded.provenance.inputs.pixels.count
    compute(np.zeros((1, channels, *loaded.image_size), np.float32))

    def make(config: ExportConfig) -> ModelProto:
        if config.dynamic_size:
            raise _refuse_any_size(loaded.provenance.origin)
        graph = make_onnx(
            network,
            config.opset,
            image_size=loaded.image_size,
            outputs=network.outputs,
            raise_opset="opset" not in config.model_fields_set,  # unless it was asked for
            channels=channels,
        )
        if config.target == "ascend":
            write_norms_out(graph)
        return graph

    kind = _KINDS.get(network.outputs[0], ImageExportable)
    checkpoint = None
    if weights is not None:
        checkpoint = weights.checkpoint
    return kind(loaded.provenance, loaded.image_size, network.outputs, make, reference, packages, checkpoint)
