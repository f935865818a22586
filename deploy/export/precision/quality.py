"""Lower-precision variants of an exported model, int8 and float16, and how far their outputs are from float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.table import Table

from ehm.config import ExportConfig
from ehm.console import console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest, ModelRecord, Precision, Quality
from ehm.deploy.export.graphs.saving import describe_graph
from ehm.deploy.export.precision.calibration import ImageSample, Prepare, choose_images
from ehm.deploy.export.precision.float16 import write_float16
from ehm.deploy.export.precision.int8 import write_int8
from ehm.deploy.predict.handler import Handler, Outputs
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import ExportError

__all__ = ["FLOOR", "write_lower_precisions"]

FLOOR = 0.99
"""Smallest mean cosine to float32 that is accepted."""
_BATCH = 8
"""Images that run together: a usual batch of a server, whose memory any machine has."""
_DEFAULT_SESSION = " in a session with ONNX Runtime's default settings"
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
    calibration, measured = choose_images(config.calibration, manifest.source, manifest.preprocessing.pixels)
    reference = Predictor(bundle, device)
    prepare = partial(reference.handler.prepare_sample, reference)
    size = _choose_batch(manifest)
    source = bundle.model("float32")
    records: dict[Precision, ModelRecord] = {}
    if config.int8:
        console.print(f"Calibrating int8 on {calibration.count} images of {calibration}")
        batches = calibration.iterate_batches(prepare, size, "calibrate")
        graph = write_int8(source, bundle.path / "model.int8.onnx", (inputs for _, inputs in batches))
        records["int8"] = describe_graph(graph, "model.int8.onnx")
    if config.float16:
        graph = write_float16(source, bundle.path / "model.float16.onnx")
        records["float16"] = describe_graph(graph, "model.float16.onnx")
    # a bundle that knows the new files, to open them as users will
    models = {**manifest.models, **records}
    complete = Bundle(bundle.path, manifest.model_copy(update={"models": models}))
    variants: dict[Precision, Predictor] = {}
    for precision in records:
        variants[precision] = Predictor(complete, device, precision)
    qualities = _measure_variants(reference, variants, measured, prepare, size)
    files = {precision: complete.model(precision) for precision in models}
    _print_table(qualities, files, reference.handler.compared)
    for precision, record in records.items():
        records[precision] = record.model_copy(update={"quality": qualities[precision]})
    return records


def _choose_batch(manifest: Manifest) -> int:
    """Return the number of images that run together."""
    # a graph that resizes takes images of any size, which cannot be stacked; a network of one image takes no more; and
    # the scores of all pixels and classes of a batch would fill the memory
    if manifest.preprocessing.in_graph or manifest.input.shape[0] == 1 or manifest.windows is not None:
        return 1
    return _BATCH


class _Tally:
    """The comparisons of one network with float32, batch by batch: outputs of all images may not fit into memory.

    ``flag`` and ``session`` name the network in messages, and ``source`` the images.
    """

    def __init__(self, handler: Handler, flag: str, source: str, session: str = "") -> None:
        self._handler = handler
        self._flag = flag
        self._where = f"images of {source}{session}"
        self._cosines: list[NDArray[np.float64]] = []
        self._agreements: list[NDArray[np.float64]] = []
        self._classes: list[NDArray[np.int64]] = []

    def add(self, expected: Outputs, found: Outputs) -> None:
        """Compare a batch; raises ExportError if an output is not finite."""
        for name, values in found.items():
            if not np.isfinite(values).all():
                raise ExportError(f"{self._flag}: {name} are not finite on {self._where}; leave it out")
        comparison = self._handler.compare(expected, found)
        self._cosines.append(comparison.cosines)
        if comparison.agreements is not None:
            self._agreements.append(comparison.agreements)
        if "logits" in found:
            self._classes.append(found["logits"].argmax(axis=1))

    def summarise(self, source: str) -> Quality:
        """Return the figures of all images; raises ExportError if the outputs are too far away."""
        cosines = np.concatenate(self._cosines)
        if cosines.mean() < FLOOR:
            raise ExportError(
                f"{self._flag}: the mean cosine to float32 is {cosines.mean():.4f} on {len(cosines)} {self._where}, "
                f"and at least {FLOOR} is asked for; calibrate on more images, or leave it out"
            )
        # features have no classes to compare
        agreement = float(np.concatenate(self._agreements).mean()) if self._agreements else None
        return Quality(
            source=source,
            images=len(cosines),
            cosine=float(cosines.mean()),
            cosine_min=float(cosines.min()),
            agreement=agreement,
        )

    def measure_accuracy(self, labels: NDArray[np.int64]) -> float:
        """Return the share of images whose likeliest class is theirs."""
        return float((np.concatenate(self._classes) == labels).mean())


def _measure_variants(
    reference: Predictor, variants: Mapping[Precision, Predictor], sample: ImageSample, prepare: Prepare, size: int
) -> dict[Precision, Quality]:
    """Run ``variants`` beside ``reference`` on photographs, and each again in a session without settings."""
    names = reference.handler.measured_outputs
    # with the name of the part, which tells if training held it out
    origin = str(sample)
    float32 = _Tally(reference.handler, "--float32", origin)
    runs: list[tuple[_Run, _Tally]] = []
    tallies: dict[Precision, tuple[_Tally, _Tally]] = {}
    for precision, predictor in variants.items():
        own = _Tally(reference.handler, f"--{precision}", origin)
        default = _Tally(reference.handler, f"--{precision}", origin, _DEFAULT_SESSION)
        runs.append((predictor.run, own))
        runs.append((_open_default_session(predictor.bundle.model(precision)), default))
        tallies[precision] = (own, default)
    indices: list[NDArray[np.int64]] = []
    for batch_indices, inputs in sample.iterate_batches(prepare, size, "measure"):
        indices.append(batch_indices)
        # all on the same batch, which is read and prepared once
        expected = reference.run(inputs, names)
        float32.add(expected, expected)
        for run, tally in runs:
            tally.add(expected, run(inputs, names))
    labels = _find_labels(sample, reference.manifest.labels, np.concatenate(indices)) if "logits" in names else None
    qualities: dict[Precision, Quality] = {}
    for precision, (own, default) in tallies.items():
        by_default = default.summarise(origin)
        figures = {
            "default_cosine": by_default.cosine,
            "default_cosine_min": by_default.cosine_min,
            "default_agreement": by_default.agreement,
        }
        if labels is not None:
            figures["accuracy"] = own.measure_accuracy(labels)
            figures["accuracy_float32"] = float32.measure_accuracy(labels)
        qualities[precision] = own.summarise(origin).model_copy(update=figures)
    return qualities


def _open_default_session(model: Path) -> _Run:
    """Load a network as a program does that knows nothing of it: ONNX Runtime's own settings, on the CPU."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = session.get_inputs()[0].name

    def run_session(inputs: NDArray[Any], names: Sequence[str]) -> Outputs:
        return dict(zip(names, session.run(list(names), {images: inputs}), strict=True))

    return run_session


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


def _print_table(qualities: Mapping[Precision, Quality], files: Mapping[Precision, Path], compared: str) -> None:
    """Print the networks' sizes and how near to float32 they stay."""
    first = next(iter(qualities.values()))
    table = Table(title=f"beside float32, on {first.images} images of {first.source}; cosine of the {compared}")
    for name in ("", "MB", "mean cosine", "least", "the same", "accuracy"):
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
