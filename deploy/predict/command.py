"""Predictions for image files and folders, as a function and as the command ``ehm predict``."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ehm.console import PlainConsole, is_notebook, print_line
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import IndexKind, Precision, read_manifest
from ehm.deploy.predict import faiss_index
from ehm.deploy.predict.handler import PredictionOptions
from ehm.deploy.predict.input_files import find_images
from ehm.deploy.predict.prediction import Prediction
from ehm.deploy.predict.prediction_list import PredictionList
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.predict.saved_predictions import save_predictions
from ehm.errors import ConfigError
from ehm.plain_values import to_plain
from ehm.progress_bar import track
from ehm.storage.names import refuse_undecodable

__all__ = ["main", "predict"]


def predict(
    bundle: str | Path | Bundle,
    images: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    device: str = "auto",
    precision: Precision = "float32",
    out: str | Path | None = None,
    index: IndexKind | None = None,
    json: bool = False,
) -> list[Prediction]:
    """Run ``bundle`` on image files and on all images below folders: one prediction each, in order.

    A file that cannot be read gives a prediction with an ``error`` and does not stop the others. ``top`` is how many
    classes to keep; ``device`` is ``cpu``, ``cuda``, ``npu``, ``openvino``, ``tensorrt``, ``auto``, or ``om`` for
    the bundle's offline model on an NPU, and ``precision`` which of the other networks runs.

    ``out`` gets ``predictions.jsonl`` and, from a bundle that gives them, ``features.npy`` (n, D) float32 with a row
    for each image that was read, in the same order; from one that gives nothing else, ``patches.npy`` (n, D, h, w).
    They take the place of all of an earlier call. A segmentation writes ``masks/NAME.png`` there instead, label images
    with a palette, in the size of each image. ``index`` adds ``index.faiss``, an index of the features for
    ``ehm serve --index``: ``flat`` (exact), ``hnsw`` or ``ivf``. ``json`` prints one object a line; else nothing is
    printed.

    Raises ExportError for a damaged bundle or one without that precision, BackendError for a device that is not there,
    DataError for a folder without images.
    """
    job = _open_job(bundle, images, top, device, precision, out, index)
    predictions = PredictionList()
    # elsewhere this function prints nothing that was not asked for
    for prediction in track(job.predict_files(), "predict", len(job.files), transient=True, hidden=not is_notebook()):
        predictions.append(prediction)
        if json:
            _print_json(prediction)
    job.save(predictions)
    return predictions


def main(
    inputs: Sequence[str | Path],
    *,
    bundle: str | Path | None = None,
    overrides: Sequence[str] = (),
    top: int = 5,
    device: str = "auto",
    precision: Precision = "float32",
    out: str | Path | None = None,
    index: IndexKind | None = None,
    json: bool = False,
    part_size: int | None = None,
    cpus: int | None = None,
    ray: str | None = None,
    workers: int | None = None,
) -> int:
    """Run the command ``ehm predict`` and return its status, 1 if an image could not be read.

    ``inputs`` are a bundle and images; or with ``bundle`` one source, whose images all are predicted into Parquet files
    (`ehm.predict_source`).
    """
    bulk: dict[str, Any] = {"part_size": part_size, "cpus": cpus, "ray": ray, "workers": workers}
    given = {name: value for name, value in bulk.items() if value is not None}
    if bundle is None:
        if given or overrides:
            flag = next(iter(given), "set").replace("_", "-")
            raise ConfigError(f"--{flag}: is for a source of images; --bundle DIR names the bundle")
        if len(inputs) < 2:
            raise ConfigError(f"{inputs[0]}: name images behind the bundle, or the bundle of a source by --bundle DIR")
        return _predict_files(inputs[0], inputs[1:], top, device, precision, out, index, json)
    if len(inputs) > 1:
        raise ConfigError(
            f"--bundle {bundle}: takes one source, a folder or a table for example, and not {len(inputs)}"
        )
    if out is None:
        raise ConfigError(f"--bundle {bundle}: needs --out, the folder for the Parquet files")
    if index is not None:
        raise ConfigError(f"--bundle {bundle}: writes Parquet files; leave out --index")
    # imported here: the sources of images take time to import that predicting a few files need not take
    from ehm.deploy.predict.bulk.command import predict_source

    result = predict_source(
        inputs[0], bundle=bundle, overrides=overrides, out=out, top=top, device=device, precision=precision, **given
    )
    if json:
        print_line(json_module.dumps(to_plain(result), indent=2))
    return 1 if result.unreadable else 0


def _predict_files(
    bundle: str | Path,
    images: Sequence[str | Path],
    top: int,
    device: str,
    precision: Precision,
    out: str | Path | None,
    index: IndexKind | None,
    json: bool,
) -> int:
    """Predict as `predict` does, with a line or an object on standard output for each image.

    Progress and notes go to standard error. Returns 1 if an image could not be read, else 0.
    """
    job = _open_job(bundle, images, top, device, precision, out, index)
    predictor = job.predictor
    notes = PlainConsole(stderr=True, for_messages=True)
    errors = PlainConsole(stderr=True)
    # standard output belongs to the results, so that it can be piped
    count = f"{len(job.files)} image{'s' * (len(job.files) != 1)}"
    outputs = predictor.handler.describe_outputs()
    notes.print(f"{count} with {bundle} ({outputs}; {predictor.network}) on {predictor.provider}")
    predictions = []
    # a bar between lines of results on the same terminal would only disturb them
    hidden = sys.stdout.isatty() or not notes.is_terminal
    with Progress(console=notes, transient=True, disable=hidden) as progress:
        for prediction in progress.track(job.predict_files(), total=len(job.files), description="predict"):
            predictions.append(prediction)
            if json:
                _print_json(prediction)
            elif prediction.error is None:
                print_line(str(prediction))
            else:
                errors.print(f"ehm predict: {prediction}")
    job.save(predictions)
    if out is not None:
        notes.print(f"results in {out}")
    failed = sum(prediction.error is not None for prediction in predictions)
    if failed:
        errors.print(f"ehm predict: {failed} of {count} could not be read")
        return 1
    return 0


@dataclass(frozen=True)
class _Job:
    """A predictor, the files that it is for, and what becomes of the predictions."""

    predictor: Predictor
    files: list[Path]
    options: PredictionOptions
    index: IndexKind | None

    def predict_files(self) -> Iterator[Prediction]:
        """Yield the prediction of each file, in order."""
        return self.predictor.handler.predict_files(self.predictor, self.files, self.options)

    def save(self, predictions: Sequence[Prediction]) -> None:
        """Write the predictions into the folder for results, if there is one."""
        if self.options.out is not None:
            save_predictions(self.options.out, predictions, self.index)


def _open_job(
    bundle: str | Path | Bundle,
    images: str | Path | Sequence[str | Path],
    top: int,
    device: str,
    precision: Precision,
    out: str | Path | None,
    index: IndexKind | None,
) -> _Job:
    """Check the arguments and load the bundle, so that what is wrong is reported before there are results."""
    if top < 1:
        raise ConfigError(f"--top {top}: expected at least 1")
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"--out {out}: is no folder")
    # the manifest alone, so that files that are missing are named before a network is loaded
    manifest = bundle.manifest if isinstance(bundle, Bundle) else read_manifest(Path(bundle))
    files = find_images(images, manifest.preprocessing.pixels)
    predictor = Predictor(bundle, device, precision)
    if index is not None:
        _check_index(predictor, index, out)
    options = PredictionOptions(top, None if out is None else Path(out))
    return _Job(predictor, files, options, index)


def _check_index(predictor: Predictor, index: IndexKind, out: str | Path | None) -> None:
    """Raise ConfigError or BackendError if no index can be written of the predictor's features."""
    faiss_index.check_kind(index)
    refuse_undecodable(Path(out or ""), "faiss")
    if out is None:
        raise ConfigError(f"--index {index}: needs --out, the folder for it")
    if predictor.manifest.output("features") is None:
        raise ConfigError(f"--index {index}: the bundle gives no features; ehm export --head features, or multi, does")


def _print_json(prediction: Prediction) -> None:
    print_line(json_module.dumps(prediction.as_dict()))
