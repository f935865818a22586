"""Export a trained model as a bundle: an ONNX file that was compared with a framework, and a manifest beside it.

Our own plain ViTs are written from their arrays, the same with any framework; torch exports timm's models, Swins and
ViTs in the relative form.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ehm.config import ExportConfig, SegmentationConfig, load_config
from ehm.console import console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import CARD, Manifest, ModelRecord, Source, Target, TensorRecord, Windows
from ehm.deploy.bundle.preprocessing import describe_preprocessing
from ehm.deploy.bundle.staging import stage_bundle
from ehm.deploy.export.card import write_card
from ehm.deploy.export.detector import export_detector, is_detector
from ehm.deploy.export.engines.ascend import write_om
from ehm.deploy.export.engines.convert import check_engines, convert, is_bundle, write_engines
from ehm.deploy.export.parity import compare
from ehm.deploy.export.sources import demand, prepare
from ehm.deploy.predict.runtime import open_session
from ehm.errors import ConfigError
from ehm.models.trained import Head, Trained
from ehm.storage.checkpoint import find_value_range, open_checkpoint
from ehm.storage.names import escape_undecodable

if TYPE_CHECKING:
    from onnx import ValueInfoProto

    from ehm.backends.torch.export.module import Module

__all__ = ["export"]

_MODEL = "model.onnx"
_NEEDED = ("onnx", "onnxruntime")
_WINDOWED = ("preprocessing", "int8", "float16")
"""What does not go together with an image that is cut into windows: the graph sees one, and photographs measure it."""


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
    image. ``head`` insists on either, or asks for ``patches`` (B, D, h, w), every patch token behind the last norm, or
    for all that the checkpoint has (``multi``). ``device`` runs the exported file in the comparison with the framework
    (torch where it is installed, else MindSpore), which computes on the CPU in float32; ``auto`` is the CPU.
    ``target``, ``int8`` and ``float16`` go before the configuration's keys of these names.

    ``triton`` is a model repository that gets the bundle's models, ``kserve`` a file for an InferenceService; where
    ``checkpoint`` is a bundle already, it stays as it is and only they are written.

    An earlier bundle at ``out`` is replaced. Raises ExportError, leaving nothing behind, where framework and ONNX
    Runtime differ by more than 1e-4 of an output's size or ``out`` holds something else; ConfigError where the other
    two would end in a bundle or a run; CheckpointError as ``open_trained`` does; BackendError where a package is
    missing.
    """
    if head not in get_args(Head):
        raise ConfigError(f"--head {head}: expected one of {', '.join(get_args(Head))}")
    asked = {"target": target, "int8": int8, "float16": float16}
    given = config.model_dump(exclude_unset=True) if isinstance(config, ExportConfig) else config
    config = load_config(ExportConfig, given, [*overrides, *(f"{key}={v}" for key, v in asked.items() if v)])
    if is_bundle(checkpoint):
        return convert(checkpoint, triton=triton, kserve=kserve, config=config, head=head, device=device, out=out)
    if head in ("auto", "multi") and is_detector(checkpoint):
        if triton is not None or kserve is not None:
            raise ConfigError("--triton, --kserve: not for a detector, whose network takes no batches; leave them out")
        return export_detector(checkpoint, config, device, Path("runs") / "export" if out is None else Path(out))
    demand("export", *_NEEDED)
    from ehm.deploy.export.graphs.saving import domains, operators
    from ehm.deploy.export.precision.quality import other_numbers

    out = Path("runs") / "export" if out is None else Path(out)
    check_engines(out, triton=triton, kserve=kserve, config=config, device=device)
    with stage_bundle(out) as folder:
        opened = prepare(config.model.model_copy(update={"init": str(checkpoint)}), head)
        loaded = opened.about
        if loaded.task == "segmentation" and (unfit := [key for key in _WINDOWED if getattr(config, key)]):
            raise ConfigError(f"{unfit[0]}: {loaded.origin} is a segmenter, which is exported without; leave it out")
        target = opened.target(config)
        what, size = ", ".join(loaded.outputs), "{} x {}".format(*loaded.image_size)
        console.print(
            f"Exporting {what} of {loaded.origin} ({loaded.kind}, {size}), target {target}, opset {config.opset}, "
            f"to {out}",
        )
        for note in loaded.notes:
            console.print(f"  {note}")
        preprocessing = describe_preprocessing(
            loaded.image_size, loaded.inputs, config.preprocessing, find_value_range(loaded.origin)
        )
        model = opened.write(folder / _MODEL, config, preprocessing)
        # only a plain ViT takes images of any size
        smallest = loaded.spec.patch_size if config.dynamic_size and isinstance(loaded, Trained) else None
        versions = domains(model)
        opset = versions.pop("")
        session = open_session(folder / _MODEL, "cpu" if device == "auto" else device)
        parity = compare(opened.reference, session, preprocessing)
        manifest = Manifest(
            task=loaded.task,
            target=target,
            models={"float32": ModelRecord(file=_MODEL, opset=opset, domains=versions, operators=operators(model))},
            input=_record(model.graph.input[0]).model_copy(update={"smallest": smallest}),
            outputs=tuple(map(_record, model.graph.output)),
            preprocessing=preprocessing,
            windows=_windows(loaded),
            labels=loaded.labels,
            source=Source(checkpoint=escape_undecodable(loaded.origin), kind=loaded.kind, sha256=loaded.sha256),
            versions={package: version(package) for package in ("ehm", *_NEEDED, *opened.packages)},
            parity=parity,
        )
        if target == "ascend":
            write_om(folder, _MODEL, manifest.input, config.ascend)
        others = other_numbers(Bundle(folder, manifest), config, "cpu" if device == "auto" else device)
        manifest = manifest.model_copy(update={"models": manifest.models | others})
        write_card(manifest, config, folder / CARD)
        bundle = Bundle.seal(folder, manifest)
        megabytes = sum(record.bytes for record in bundle.manifest.files.values()) / 1e6
    console.print(
        f"Differs from {parity.reference.partition(' ')[0]} by at most {parity.max_relative:.1e} of an output's size "
        f"(allowed {parity.tolerance:g}), cosine {parity.cosine:.7f}"
    )
    console.print(f"Bundle in {out} ({megabytes:.1f} MB); try: ehm predict {out} IMAGE")
    write_engines(Bundle(out, bundle.manifest), triton=triton, kserve=kserve, config=config, device=device)
    return out


def _record(value: ValueInfoProto) -> TensorRecord:
    from onnx import TensorProto

    shape = tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
    if value.type.tensor_type.elem_type == TensorProto.UINT8:
        return TensorRecord(name=value.name, dtype="uint8", layout="NHWC", shape=shape)
    return TensorRecord(name=value.name, dtype="float32", layout="NCHW" if len(shape) == 4 else "NC", shape=shape)


def _windows(loaded: Trained | Module) -> Windows | None:
    """As the checkpoint was measured: the same scale, and the same share of a window from one to the next."""
    if loaded.task != "segmentation":
        return None
    settings = SegmentationConfig.model_validate(open_checkpoint(loaded.origin).metadata["config"])
    down, across = (
        max(1, size * step // side)
        for size, step, side in zip(loaded.image_size, settings.stride, settings.crop_size, strict=True)
    )
    return Windows(scale=settings.data.scale, stride=(down, across))
