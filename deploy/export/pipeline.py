"""The way from a trained model to a bundle: graph, file, comparison, manifest, lower precisions, card."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from ehm.config import ExportConfig, load_config
from ehm.console import console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import CARD, BatchRange, Manifest, Source, Target, TensorRecord
from ehm.deploy.bundle.preprocessing import describe_preprocessing
from ehm.deploy.bundle.staging import stage_bundle
from ehm.deploy.export.bundle_path import BundlePath
from ehm.deploy.export.card import write_card
from ehm.deploy.export.detector import check_detector_config, is_detector, open_detector
from ehm.deploy.export.engines.ascend import write_scripts
from ehm.deploy.export.engines.convert import check_engines, convert_bundle, is_bundle, write_engines
from ehm.deploy.export.engines.precision_search import convert_network
from ehm.deploy.export.engines.samples import find_samples
from ehm.deploy.export.exportable import Exportable
from ehm.deploy.export.parity import FLOAT16_TOLERANCE, TOLERANCE
from ehm.deploy.export.sources import prepare_export, require_packages
from ehm.deploy.predict.runtime import open_session
from ehm.errors import ConfigError
from ehm.models.heads import Head
from ehm.storage.names import escape_undecodable

if TYPE_CHECKING:
    from onnx import ValueInfoProto

__all__ = ["export"]

_MODEL = "model.onnx"
_NEEDED = ("onnx", "onnxruntime")
Layout = Literal["N", "NC", "NHW", "NLC", "NCHW"]
_LAYOUTS: dict[int, Layout] = {1: "N", 2: "NC", 3: "NHW", 4: "NCHW"}
"""The layout of a tensor that is not bytes, by its number of dimensions."""


def export(
    checkpoint: str | Path,
    *,
    config: ExportConfig | str | Path | None = None,
    head: Head = "auto",
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    target: Target | None = None,
    int8: bool = False,
    float16: bool = False,
    triton: str | Path | None = None,
    kserve: str | Path | None = None,
) -> Path:
    """Write the model of ``checkpoint`` as a bundle at ``out`` (``runs/export`` if left out), and return that path.

    ``checkpoint`` is a run folder or checkpoint, a ``.safetensors`` or ``.pth`` file, or ``timm:NAME``. A fine-tuned
    one gives ``logits`` (B, classes), a segmenter ``scores`` (B, classes, H, W), a pretrained one ``features`` (B, D):
    the mean of the patch tokens of the whole image, nothing masked; a detector boxes, labels, scores and masks of one
    image; the eyes of a language model ``visual_tokens`` (B, K, W). ``head`` insists on either, or asks for ``patches``
    (B, D, h, w), every patch token behind the last norm, or for all that the checkpoint has (``multi``). ``device``
    runs the exported file in the comparison with the framework (torch if it is installed, else MindSpore), which
    computes on the CPU in float32; ``auto`` is the CPU. ``target``, ``int8`` and ``float16`` go before the
    configuration's keys of these names.

    ``triton`` is a model repository that gets the bundle's models, ``kserve`` a file for an InferenceService; if
    ``checkpoint`` is a bundle already, it stays as it is and only they are written.

    An earlier bundle at ``out`` is replaced. Raises ExportError, leaving nothing behind, if framework and ONNX Runtime
    differ by more than 1e-4 of an output's size or ``out`` holds something else; ConfigError if the other two would end
    in a bundle or a run; CheckpointError as ``open_model`` does; BackendError if a package is missing.
    """
    if head not in get_args(Head):
        raise ConfigError(f"--head {head}: expected one of {', '.join(get_args(Head))}")
    config = _load_config(config, overrides, target, int8, float16)
    # a bundle is final: it can only be converted for other engines
    if is_bundle(checkpoint):
        converted = convert_bundle(
            checkpoint, triton=triton, kserve=kserve, config=config, head=head, device=device, out=out
        )
        return BundlePath(converted)
    out = Path("runs") / "export" if out is None else Path(out)
    config = config.model_copy(update={"model": config.model.model_copy(update={"init": str(checkpoint)})})
    # other heads take the encoder of a detector alone, which is an image model
    whole_detector = head in ("auto", "multi") and is_detector(checkpoint)
    if whole_detector:
        check_detector_config(config)
    else:
        require_packages("export", *_NEEDED)
    check_engines(out, triton=triton, kserve=kserve, config=config, device=device)
    with stage_bundle(out) as folder:
        model = open_detector(config.model) if whole_detector else prepare_export(config.model, head)
        sealed = _write_bundle(folder, model, config, device, out)
    # all files, since weights may lie beside the graph
    megabytes = sum(record.bytes for record in sealed.manifest.files.values()) / 1e6
    console.print(sealed.manifest.parity.describe())
    console.print(f"Bundle in {out} ({megabytes:.1f} MB); try: ehm predict {out} IMAGE")
    write_engines(Bundle(out, sealed.manifest), triton=triton, kserve=kserve, config=config, device=device)
    return BundlePath(out)


def _load_config(
    config: ExportConfig | str | Path | None,
    overrides: Sequence[str],
    target: Target | None,
    int8: bool,
    float16: bool,
) -> ExportConfig:
    """Return the configuration with the overrides, and with the flags that have keys of their own."""
    settings = list(overrides)
    # flags that were given go before the configuration's keys
    for key, value in (("target", target), ("int8", int8), ("float16", float16)):
        if value:
            settings.append(f"{key}={value}")
    if isinstance(config, ExportConfig):
        # a key that was left out stays so: an operator set that nobody asked for may be raised
        return load_config(ExportConfig, config.model_dump(exclude_unset=True), settings)
    return load_config(ExportConfig, config, settings)


def _write_bundle(folder: Path, model: Exportable, config: ExportConfig, device: str, out: Path) -> Bundle:
    """Write everything that a bundle holds into ``folder``, which will be ``out``."""
    from ehm.deploy.export.graphs.convolutions import lacks_float32_convolution, write_convolutions_out
    from ehm.deploy.export.graphs.preprocessing import take_bytes
    from ehm.deploy.export.graphs.saving import describe_graph, save
    from ehm.deploy.export.precision.quality import write_lower_precisions

    provenance = model.provenance
    device = "cpu" if device == "auto" else device
    target = model.choose_target(config)
    height, width = model.image_size
    console.print(
        f"Exporting {', '.join(model.outputs)} of {provenance.origin} ({provenance.kind}, {height} x {width}), "
        f"target {target}, opset {model.choose_opset(config)}, to {out}"
    )
    for note in provenance.notes:
        console.print(f"  {note}")
    value_range = None if model.checkpoint is None else model.checkpoint.value_range
    preprocessing = describe_preprocessing(model.image_size, provenance.inputs, config.preprocessing, value_range)
    graph = model.make_graph(config)
    if config.preprocessing:
        take_bytes(graph, preprocessing)
    tolerance = TOLERANCE
    if target == "ascend" and lacks_float32_convolution(config.ascend.soc_version) and write_convolutions_out(graph):
        tolerance = FLOAT16_TOLERANCE
    # saved before it is compared: the file itself has to be right, not the graph in memory
    save(graph, folder / _MODEL)
    parity = model.compare(open_session(folder / _MODEL, device), preprocessing, tolerance)
    images = _describe_tensor(graph.graph.input[0])
    packages = ("ehm", *_NEEDED, *model.packages)
    manifest = Manifest(
        task=model.task,
        target=target,
        models={"float32": describe_graph(graph, _MODEL)},
        input=images.model_copy(update={"smallest": model.find_smallest_side(config)}),
        outputs=tuple(map(_describe_tensor, graph.graph.output)),
        preprocessing=preprocessing,
        labels=provenance.labels,
        source=Source(checkpoint=escape_undecodable(provenance.origin), kind=provenance.kind, sha256=provenance.sha256),
        versions=dict(zip(packages, map(version, packages), strict=True)),
        parity=parity,
        batches=BatchRange(usual=config.batches.usual, largest=config.batches.largest),
        **model.describe_manifest_rules(),
    )
    # before the bundle is sealed, so that the script and the offline model are hashed too
    if target == "ascend":
        kept = [node.name for node in graph.graph.node if node.op_type in config.ascend.float32_operators]
        write_script = partial(write_scripts, folder, _MODEL, manifest.input, config.ascend, kept)
        bundle = Bundle(folder, manifest)
        record = convert_network(bundle, config.ascend, write_script, partial(find_samples, bundle, config.calibration))
        manifest = manifest.model_copy(update={"ascend": record})
    records = write_lower_precisions(Bundle(folder, manifest), config, device)
    manifest = manifest.model_copy(update={"models": manifest.models | records})
    # last, since the card reports the quality of the lower precisions
    write_card(manifest, config, folder / CARD)
    return Bundle.seal(folder, manifest)


def _describe_tensor(value: ValueInfoProto) -> TensorRecord:
    """Return the manifest's record of an input or output of a graph."""
    from onnx import TensorProto

    shape: list[int | str] = []
    for dimension in value.type.tensor_type.shape.dim:
        shape.append(dimension.dim_param or dimension.dim_value)  # a dynamic one has a name
    element = value.type.tensor_type.elem_type
    # of images that the graph itself resizes, whose channels come last
    if shape[1:3] == ["height", "width"]:
        types: dict[int, Literal["uint8", "uint16", "float32"]] = {
            TensorProto.UINT8: "uint8",
            TensorProto.UINT16: "uint16",
            TensorProto.FLOAT: "float32",
        }
        return TensorRecord(name=value.name, dtype=types[element], layout="NHWC", shape=tuple(shape))
    layout: Layout = "NLC" if value.name == "visual_tokens" else _LAYOUTS[len(shape)]
    if element == TensorProto.INT64:
        return TensorRecord(name=value.name, dtype="int64", layout=layout, shape=tuple(shape))
    return TensorRecord(name=value.name, dtype="float32", layout=layout, shape=tuple(shape))
