"""A detector as a bundle: one image of one size at a time, compared with torchvision's own computation."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config import ExportConfig
from ehm.console import console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import CARD, Fit, Manifest, ModelRecord, Parity, ParityCase, Source, TensorRecord
from ehm.deploy.bundle.preprocessing import describe_preprocessing
from ehm.deploy.bundle.staging import stage_bundle
from ehm.deploy.export.card import write_card
from ehm.deploy.export.sources import demand
from ehm.deploy.predict.runtime import open_session
from ehm.errors import ConfigError, ExportError
from ehm.models.weights import checkpoint_inputs
from ehm.storage.checkpoint import find_checkpoint, open_checkpoint
from ehm.storage.names import escape_undecodable

__all__ = ["compare_detector", "export_detector", "is_detector"]

_MODEL = "model.onnx"
_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")
_TOLERANCE = 1e-3
_ALIKE = 0.9
"""Share of objects that both have to find. Where two scores are equal within rounding, either box may go."""
_LAYOUTS = {"images": "NCHW", "boxes": "NC", "labels": "N", "scores": "N", "masks": "NHW"}


def is_detector(path: str | Path) -> bool:
    """Whether a detector's run or checkpoint lies at ``path``."""
    found = find_checkpoint(path)
    return found is not None and found.kind == "detector"


def export_detector(path: str | Path, config: ExportConfig, device: str, out: Path) -> Path:
    """Write the detector of ``path`` as a bundle at ``out``; see :func:`ehm.deploy.export.export`, and its errors.

    ``config.model.image_size`` is the size that images are fitted into. Raises ConfigError for what a detector's bundle
    cannot be.
    """
    unfit = {
        "target": config.target != "portable",
        **{key: getattr(config, key) for key in ("preprocessing", "dynamic_size", "int8", "float16")},
    }
    if any(unfit.values()):
        key = next(key for key, given in unfit.items() if given)
        raise ConfigError(f"{key}: a detector is written in float32 for one size, target portable; leave it out")
    demand("torch,export,tasks", *_PACKAGES)
    from ehm.backends.torch.export.detector_module import load_detector
    from ehm.deploy.export.graphs.saving import domains, operators, save
    from ehm.deploy.export.graphs.torch_export import make_onnx

    opened = open_checkpoint(path)
    folder = opened.folder
    meta = opened.metadata
    with stage_bundle(out) as bundle:
        graph, trained = load_detector(folder, opened.model, meta, config.model.image_size)
        height, width = graph.image_size
        console.print(f"Exporting a detector of {folder} ({height} x {width}), opset 18, to {out}")
        model = make_onnx(graph, 18, image_size=graph.image_size, outputs=graph.outputs, batch=1)
        save(model, bundle / _MODEL)
        session = open_session(bundle / _MODEL, "cpu" if device == "auto" else device)
        parity = compare_detector(graph, session)
        versions = domains(model)
        manifest = Manifest(
            task="detection",
            models={
                "float32": ModelRecord(
                    file=_MODEL, opset=versions.pop(""), domains=versions, operators=operators(model)
                )
            },
            input=_record(model.graph.input[0]),
            outputs=tuple(map(_record, model.graph.output)),
            preprocessing=describe_preprocessing(
                graph.image_size, checkpoint_inputs(meta), value_range=trained.data.range
            ),
            fit=_rule(trained, graph),
            labels=tuple(meta["classes"]),
            source=Source(
                checkpoint=escape_undecodable(str(folder)),
                kind=meta["kind"],
                sha256=opened.model_sha256,
            ),
            versions={package: version(package) for package in ("ehm", *_PACKAGES)},
            parity=parity,
        )
        write_card(manifest, config, bundle / CARD)
        sealed = Bundle.seal(bundle, manifest)
        megabytes = sum(record.bytes for record in sealed.manifest.files.values()) / 1e6
    console.print(f"Differs from torchvision by at most {parity.max_abs:.1e} (allowed {parity.tolerance:g})")
    console.print(f"Bundle in {out} ({megabytes:.1f} MB); try: ehm predict {out} IMAGE")
    return out


def _rule(trained: Any, graph: Any) -> Fit:
    shorter, longer = trained.min_size[-1], trained.max_size
    if not graph.model.backbone.pyramid.any_size:
        shorter, longer = graph.image_size  # a square, which images fill
    return Fit(shorter=shorter, longer=longer, threshold=trained.score_threshold)


def _record(value: Any) -> TensorRecord:
    from onnx import TensorProto

    kind = value.type.tensor_type
    dtype: Any = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64"}[kind.elem_type]
    layout: Any = _LAYOUTS[value.name]
    return TensorRecord(
        name=value.name,
        dtype=dtype,
        layout=layout,
        shape=tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim),
    )


def compare_detector(graph: Any, session: Any) -> Parity:
    """torchvision's own path, at this size, against ONNX Runtime; ExportError where they differ."""
    import onnxruntime
    import torch
    from torchvision.models.detection.image_list import ImageList

    model, size = graph.model, graph.image_size
    model.roi_heads.score_thresh = 0.0  # as in the graph
    cases = []
    for kind, images in _inputs(size):
        with torch.inference_mode():
            maps = model.backbone(torch.from_numpy(images))
            proposals, _ = model.rpn(ImageList(torch.from_numpy(images), [size]), maps)
            ((one,), _) = model.roi_heads(maps, proposals, [size])
        expected = {name: value.numpy() for name, value in one.items()}
        expected["labels"] = expected["labels"] - 1
        found = dict(zip(graph.outputs, session.run(list(graph.outputs), {"images": images}), strict=True))
        cases.append(_case(kind, expected, found, max(size)))
    worst = max(cases, key=lambda case: case.max_abs)
    if not worst.max_abs <= _TOLERANCE:
        raise ExportError(
            f"parity: the exported model differs from torchvision by {worst.max_abs:.2g} on {worst.images} images, and "
            f"at most {_TOLERANCE:g} is allowed; nothing was written"
        )
    return Parity(
        reference=f"torchvision {version('torchvision')}, torch {torch.__version__}, cpu, float32",
        runtime=f"onnxruntime {onnxruntime.__version__}, {session.get_providers()[0]}",
        tolerance=_TOLERANCE,
        max_abs=worst.max_abs,
        cosine=min(case.cosine for case in cases),
        cases=tuple(cases),
    )


def _inputs(size: tuple[int, int]) -> list[tuple[Any, NDArray[np.float32]]]:
    """White noise, and a picture with the 1/f spectrum of photographs: (1, 3, H, W), as if normalised."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1, 3, *size))
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    frequency[0, 0] = np.inf
    smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=size)
    return [("random", noise.astype(np.float32)), ("natural", (smooth / smooth.std()).astype(np.float32))]


def _case(kind: Any, expected: dict[str, Any], found: dict[str, Any], side: int) -> ParityCase:
    """Largest difference of scores, masks and boxes (in longer sides) of the objects that both found."""
    pairs = [(one, two) for one in range(len(expected["scores"])) if (two := _same(one, expected, found, side)) >= 0]
    if len(pairs) < _ALIKE * len(expected["scores"]):
        raise ExportError(
            f"parity: of {len(expected['scores'])} objects that torchvision finds in {kind} images the exported model "
            f"finds {len(pairs)}; nothing was written"
        )
    ones, twos = (np.array([pair[place] for pair in pairs], np.int64) for place in (0, 1))
    differences, cosines = [0.0], [1.0]
    for name, scale in (("boxes", side), ("scores", 1), ("masks", 1)):
        if name in found and len(pairs):
            theirs, ours = expected[name][ones].ravel() / scale, found[name][twos].ravel() / scale
            differences.append(float(np.abs(theirs - ours).max()))
            cosines.append(float(theirs @ ours / max(np.linalg.norm(theirs) * np.linalg.norm(ours), 1e-30)))
    return ParityCase(images=kind, batch=1, max_abs=max(differences), cosine=min(cosines))


def _same(one: int, expected: dict[str, Any], found: dict[str, Any], side: int) -> int:
    """The object of ``found`` that is object ``one`` of ``expected``; -1 if there is none."""
    near = np.abs(found["boxes"] - expected["boxes"][one]).max(axis=1) / side < _TOLERANCE
    near &= np.abs(found["scores"] - expected["scores"][one]) < _TOLERANCE
    near &= found["labels"] == expected["labels"][one]
    return int(near.argmax()) if near.any() else -1
