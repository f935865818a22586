"""Lower-precision variants of an exported model, int8 and float16, and how far their outputs are from float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from ehm.deploy.export.precision.calibration import ImageSample, choose_images
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
    """Write the variants that ``config`` asks for into the folder of ``bundle``, which holds float32; measure them.

    ``device`` runs them on photographs, as in :func:`ehm.deploy.predict.runtime.open_session`; a session of ONNX
    Runtime with its default settings does so too. A table is printed. Raises ExportError if an output of either is not
    finite or its mean cosine is below ``FLOOR``, and as `choose_images` and `write_int8` do.
    """
    if not (config.int8 or config.float16):
        return {}
    manifest = bundle.manifest
    value_range = manifest.preprocessing.value_range
    calibration, measured = choose_images(config.calibration, manifest.source, value_range)
    reference = Predictor(bundle, device)
    # a graph that resizes takes images of any size, which cannot be stacked
    size = 1 if manifest.preprocessing.in_graph else _BATCH
    source = bundle.model("float32")
    records: dict[Precision, ModelRecord] = {}
    if config.int8:
        console.print(f"Calibrating int8 on {calibration.count} images of {calibration}")
        batches = calibration.iterate_batches(reference.prepare, size, "calibrate")
        graph = write_int8(source, bundle.path / "model.int8.onnx", (inputs for _, inputs in batches))
        records["int8"] = describe_graph(graph, "model.int8.onnx")
    if config.float16:
        graph = _write_float16(source, bundle.path / "model.float16.onnx")
        records["float16"] = describe_graph(graph, "model.float16.onnx")
    # a bundle that knows the new files, to open them as users will
    models = {**manifest.models, **records}
    complete = Bundle(bundle.path, manifest.model_copy(update={"models": models}))
    variants: dict[Precision, Predictor] = {}
    for precision in records:
        variants[precision] = Predictor(complete, device, precision)
    qualities = _measure_variants(reference, variants, measured, size)
    files = {precision: complete.model(precision) for precision in models}
    _print_table(qualities, files, manifest.compared_output)
    for precision, record in records.items():
        records[precision] = record.model_copy(update={"quality": qualities[precision]})
    return records


def _write_float16(source: Path, path: Path) -> ModelProto:
    """Write the graph in float16; its inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    nodes = onnx.load(source, load_external_data=False).graph.node
    # what lies before the first convolution is preprocessing in the graph, whose sizes and pixels float16 would round
    kept = []
    for node in nodes:
        if node.op_type == "Conv":
            break
        kept.append(node.name)
    else:
        kept = []  # a graph without a convolution has no preprocessing in front of it
    model: ModelProto = convert_float_to_float16(str(source), keep_io_types=True, node_block_list=kept)
    _sort_nodes(model.graph)
    save(model, path)
    return model


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
        graph.node.extend(ready)
        waiting = [node for node in waiting if not known.issuperset(node.output)]


def _measure_variants(
    reference: Predictor, variants: Mapping[Precision, Predictor], sample: ImageSample, size: int
) -> dict[Precision, Quality]:
    """Run ``variants`` beside ``reference`` on photographs, and each again in a session without settings."""
    manifest = reference.manifest
    names = [manifest.compared_output]
    if manifest.compared_output != "logits" and manifest.output("logits"):
        names.append("logits")
    runs: dict[str, _Run] = {"float32": reference.run}
    for precision, predictor in variants.items():
        runs[precision] = predictor.run
        runs[f"{precision}{_DEFAULT_SESSION}"] = _open_default_session(predictor.bundle.model(precision))
    indices, outputs = _run_all(runs, names, reference, sample, size)
    labels = _find_labels(sample, manifest.labels, indices)
    # with the name of the part, which tells if training held it out
    origin = str(sample)
    expected = outputs["float32"]
    qualities: dict[Precision, Quality] = {}
    for precision in variants:
        own = _compare_precision(origin, expected, outputs[precision], names, precision, labels)
        found_by_default = outputs[f"{precision}{_DEFAULT_SESSION}"]
        default = _compare_precision(origin, expected, found_by_default, names, precision, labels, _DEFAULT_SESSION)
        qualities[precision] = own.model_copy(
            update={
                "default_cosine": default.cosine,
                "default_cosine_min": default.cosine_min,
                "default_agreement": default.agreement,
            }
        )
    return qualities


def _run_all(
    runs: Mapping[str, _Run], names: Sequence[str], reference: Predictor, sample: ImageSample, size: int
) -> tuple[NDArray[np.int64], dict[str, Outputs]]:
    """Return the indices (n,) of the images, and for each of ``runs`` the outputs (n, ...) of those names."""
    indices: list[NDArray[np.int64]] = []
    found: dict[str, dict[str, list[NDArray[np.float32]]]] = {}
    for run in runs:
        found[run] = {name: [] for name in names}
    for batch_indices, inputs in sample.iterate_batches(reference.prepare, size, "measure"):
        indices.append(batch_indices)
        # all on the same batch, which is read and prepared once
        for run, function in runs.items():
            for name, values in function(inputs, names).items():
                found[run][name].append(values)
    outputs: dict[str, Outputs] = {run: {} for run in runs}
    for run, batches in found.items():
        for name, parts in batches.items():
            outputs[run][name] = np.concatenate(parts)
    return np.concatenate(indices), outputs


def _open_default_session(model: Path) -> _Run:
    """Load a network as a program does that knows nothing of it: ONNX Runtime's own settings, on the CPU."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = session.get_inputs()[0].name

    def run_session(inputs: NDArray[Any], names: Sequence[str]) -> Outputs:
        return dict(zip(names, session.run(list(names), {images: inputs}), strict=True))

    return run_session


def _compare_precision(
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
    # a bundle of features has no classes to compare
    shares = {}
    if "logits" in names:
        classes_float32 = expected["logits"].argmax(axis=1)
        classes = found["logits"].argmax(axis=1)
        shares["agreement"] = float((classes_float32 == classes).mean())
        if labels is not None:
            shares["accuracy"] = float((classes == labels).mean())
            shares["accuracy_float32"] = float((classes_float32 == labels).mean())
    return Quality(
        source=source, images=len(cosines), cosine=float(cosines.mean()), cosine_min=float(cosines.min()), **shares
    )


def _find_labels(sample: ImageSample, classes: tuple[str, ...], indices: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the classes of the images in the network's numbers; None, and a line that says so, if it lacks one."""
    source = sample.subset.source
    if source.labels is None or not classes:
        return None
    unknown = [name for name in source.classes if name not in classes]
    if unknown:
        known = list(classes[:5])
        if len(classes) > 5:
            known.append("…")
        console.print(
            f"No accuracy is measured: class {unknown[0]} of {sample.origin} is not among the network's "
            f"{len(classes)} ({', '.join(known)})"
        )
        return None
    own_numbers = np.array([classes.index(name) for name in source.classes])
    labels: NDArray[np.int64] = own_numbers[source.labels[indices]]
    return labels


def _print_table(qualities: Mapping[Precision, Quality], files: Mapping[Precision, Path], output: str) -> None:
    """Print the networks' sizes and how near to float32 they stay."""
    first = next(iter(qualities.values()))
    table = Table(title=f"beside float32, on {first.images} images of {first.source}; cosine of the {output}")
    for name in ("", "MB", "mean cosine", "least", "same class", "accuracy"):
        table.add_column(name, justify="right" if name else "left")
    for precision, file in files.items():
        parts = file.parent.glob(f"{file.name}*")  # with external data
        megabytes = f"{sum(part.stat().st_size for part in parts) / 1e6:.1f}"
        quality = qualities.get(precision)
        if quality is None:
            table.add_row(precision, megabytes, "", "", "", *_format_figures(".1%", first.accuracy_float32))
            continue
        cosines = _format_figures(".6f", quality.cosine, quality.cosine_min)
        shares = _format_figures(".1%", quality.agreement, quality.accuracy)
        table.add_row(precision, megabytes, *cosines, *shares)
        cosines = _format_figures(".6f", quality.default_cosine, quality.default_cosine_min)
        shares = _format_figures(".1%", quality.default_agreement, None)
        table.add_row("  default session", "", *cosines, *shares)
    console.print(table)


def _format_figures(form: str, *values: float | None) -> list[str]:
    """Return figures in a format of Python's; one that was not measured is empty."""
    return ["" if value is None else format(value, form) for value in values]
