"""The same network in other numbers than float32: int8 and float16, and how much that changes what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto
from rich.table import Table

from ehm.config import ExportConfig
from ehm.console import console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import ModelRecord, Precision, Quality
from ehm.deploy.export.graphs.saving import describe_graph, save
from ehm.deploy.export.precision.calibration import Photographs, choose
from ehm.deploy.export.precision.int8 import write_int8
from ehm.deploy.predict.predictor import Predictor, row_cosines
from ehm.errors import ExportError

__all__ = ["FLOOR", "write_lower_precisions"]

FLOOR = 0.99
"""Smallest mean cosine to float32 that is accepted."""
_BATCH = 8
_DEFAULT_SESSION = " in a session with ONNX Runtime's default settings"
Outputs = dict[str, NDArray[np.float32]]
_Run = Callable[[NDArray[Any], Sequence[str]], Outputs]


def write_lower_precisions(bundle: Bundle, config: ExportConfig, device: str) -> dict[Precision, ModelRecord]:
    """Write those that ``config`` asks for into the folder of ``bundle``, which holds float32; measure and print them.

    ``device`` runs them on photographs, as in :func:`ehm.deploy.predict.runtime.open_session`; a session of ONNX
    Runtime with its default settings does so too. Raises ExportError if an output of either is not finite or its mean
    cosine is below ``FLOOR``, and as :func:`choose` and :func:`write_int8` do.
    """
    if not (config.int8 or config.float16):
        return {}
    calibration, measured = choose(
        config.calibration, bundle.manifest.source, bundle.manifest.preprocessing.value_range
    )
    reference = Predictor(bundle, device)
    size = 1 if bundle.manifest.preprocessing.in_graph else _BATCH  # of any size there, and not to be stacked
    written: dict[Precision, ModelProto] = {}
    source = bundle.model("float32")
    if config.int8:
        console.print(f"Calibrating int8 on {calibration.count} images of {calibration}")
        batches = calibration.batches(reference.prepare, size, "calibrate")
        written["int8"] = write_int8(source, bundle.path / "model.int8.onnx", (inputs for _, inputs in batches))
    if config.float16:
        written["float16"] = _write_float16(source, bundle.path / "model.float16.onnx")
    records: dict[Precision, ModelRecord] = {
        precision: describe_graph(model, f"model.{precision}.onnx") for precision, model in written.items()
    }
    models = {**bundle.manifest.models, **records}
    whole = Bundle(bundle.path, bundle.manifest.model_copy(update={"models": models}))
    rivals = {precision: Predictor(whole, device, precision) for precision in written}
    qualities = _measure(reference, rivals, measured, size)
    _print(qualities, {precision: whole.model(precision) for precision in models}, bundle.manifest.compared_output)
    return {key: record.model_copy(update={"quality": qualities[key]}) for key, record in records.items()}


def _write_float16(source: Path, path: Path) -> ModelProto:
    """Inputs and outputs stay float32, as does what lies before the first convolution: preprocessing in the graph."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    nodes = onnx.load(source, load_external_data=False).graph.node
    first = next((index for index, node in enumerate(nodes) if node.op_type == "Conv"), 0)
    kept = [node.name for node in nodes[:first]]
    model: ModelProto = convert_float_to_float16(str(source), keep_io_types=True, node_block_list=kept)
    _sort(model.graph)
    save(model, path)
    return model


def _sort(graph: GraphProto) -> None:
    """Bring nodes behind those that they take from: the converter puts its casts at the end."""
    known = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    waiting = list(graph.node)
    del graph.node[:]
    while waiting:
        ready = []
        for node in waiting:
            if known.issuperset(node.input):
                known.update(node.output)
                ready.append(node)
        graph.node.extend(ready)
        waiting = [node for node in waiting if not known.issuperset(node.output)]


def _measure(
    reference: Predictor, rivals: dict[Precision, Predictor], photographs: Photographs, size: int
) -> dict[Precision, Quality]:
    """Run ``rivals`` beside ``reference`` on photographs, and each again in a session without settings."""
    manifest = reference.manifest
    names = [manifest.compared_output]
    if manifest.compared_output != "logits" and manifest.output("logits"):
        names.append("logits")
    runs: dict[str, _Run] = {"float32": reference.run}
    for precision, predictor in rivals.items():
        runs[precision] = predictor.run
        runs[f"{precision}{_DEFAULT_SESSION}"] = _open_default_session(predictor.bundle.model(precision))
    numbers: list[NDArray[np.int64]] = []
    found: dict[str, list[Outputs]] = {name: [] for name in runs}
    for indices, inputs in photographs.batches(reference.prepare, size, "measure"):
        numbers.append(indices)
        for name, run in runs.items():
            found[name].append(run(inputs, names))
    outputs = {
        run: {name: np.concatenate([batch[name] for batch in batches]) for name in names}
        for run, batches in found.items()
    }
    labels = _labels(photographs, manifest.labels, np.concatenate(numbers))
    origin = str(photographs)
    expected = outputs["float32"]
    qualities: dict[Precision, Quality] = {}
    for precision in rivals:
        own = _quality(origin, expected, outputs[precision], names, precision, labels)
        found_by_default = outputs[f"{precision}{_DEFAULT_SESSION}"]
        default = _quality(origin, expected, found_by_default, names, precision, labels, _DEFAULT_SESSION)
        qualities[precision] = own.model_copy(
            update={
                "default_cosine": default.cosine,
                "default_cosine_min": default.cosine_min,
                "default_agreement": default.agreement,
            }
        )
    return qualities


def _open_default_session(model: Path) -> _Run:
    """Load a network as a program does that knows nothing of it: ONNX Runtime's own settings, on the CPU."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = session.get_inputs()[0].name

    def run(inputs: NDArray[Any], names: Sequence[str]) -> Outputs:
        return dict(zip(names, session.run(list(names), {images: inputs}), strict=True))

    return run


def _quality(
    source: str,
    expected: Outputs,
    found: Outputs,
    names: list[str],
    precision: Precision,
    labels: NDArray[np.int64] | None,
    session: str = "",
) -> Quality:
    """Compare outputs with those in float32; raises ExportError, which names ``session``, if they are too far away."""
    for name in names:
        if not np.isfinite(found[name]).all():
            raise ExportError(f"--{precision}: {name} are not finite on images of {source}{session}; leave it out")
    cosines = row_cosines(expected[names[0]], found[names[0]])
    if cosines.mean() < FLOOR:
        raise ExportError(
            f"--{precision}: the mean cosine to float32 is {cosines.mean():.4f} on {len(cosines)} images of "
            f"{source}{session}, and at least {FLOOR} is asked for; calibrate on more images, or leave it out"
        )
    values = {}
    if "logits" in names:
        before, after = expected["logits"].argmax(axis=1), found["logits"].argmax(axis=1)
        values["agreement"] = float((before == after).mean())
        if labels is not None:
            values["accuracy"], values["accuracy_float32"] = (float((y == labels).mean()) for y in (after, before))
    return Quality(
        source=source, images=len(cosines), cosine=float(cosines.mean()), cosine_min=float(cosines.min()), **values
    )


def _labels(photographs: Photographs, classes: tuple[str, ...], numbers: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the classes of the images in the network's numbers; None, and a line that says so, if it lacks one."""
    source = photographs.part.source
    if source.labels is None or not classes:
        return None
    unknown = [name for name in source.classes if name not in classes]
    if unknown:
        console.print(
            f"No accuracy is measured: class {unknown[0]} of {photographs.origin} is not among the network's "
            f"{len(classes)} ({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
        )
        return None
    own = np.array([classes.index(name) for name in source.classes])
    labels: NDArray[np.int64] = own[source.labels[numbers]]
    return labels


def _print(qualities: dict[Precision, Quality], files: dict[Precision, Path], output: str) -> None:
    """Print a table of the networks' sizes and of how near to float32 they stay."""
    first = next(iter(qualities.values()))
    table = Table(title=f"beside float32, on {first.images} images of {first.source}; cosine of the {output}")
    for name in ("", "MB", "mean cosine", "least", "same class", "accuracy"):
        table.add_column(name, justify="right" if name else "left")

    def decimal(value: float | None) -> str:
        return "" if value is None else f"{value:.6f}"

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    for precision, file in files.items():
        parts = file.parent.glob(f"{file.name}*")  # with external data
        megabytes = f"{sum(part.stat().st_size for part in parts) / 1e6:.1f}"
        quality = qualities.get(precision)
        if quality is None:
            table.add_row(precision, megabytes, "", "", "", share(first.accuracy_float32))
            continue
        own = (quality.cosine, quality.cosine_min)
        default = (quality.default_cosine, quality.default_cosine_min)
        table.add_row(precision, megabytes, *map(decimal, own), share(quality.agreement), share(quality.accuracy))
        table.add_row("  default session", "", *map(decimal, default), share(quality.default_agreement), "")
    console.print(table)
