"""Classify images, segment them, detect objects or extract features with a bundle: ONNX Runtime and NumPy alone."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

from ehm.console import PlainConsole, print_line
from ehm.data.decoding.decode import SUFFIXES, decode
from ehm.data.decoding.depth import count_missing
from ehm.data.segmentation import resize
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Fit, IndexKind, Precision, Preprocessing, Windows
from ehm.deploy.bundle.preprocessing import eval_transform
from ehm.deploy.predict import faiss_index
from ehm.deploy.predict.detection import Found, Placed, found_in, place
from ehm.deploy.predict.runtime import open_session
from ehm.deploy.predict.segmentation import BATCH, Mosaic, write_mask
from ehm.errors import BrokenImage, ConfigError, DataError
from ehm.storage.names import refuse_undecodable
from ehm.storage.reading import parse_json, read_text
from ehm.storage.writing import replace_file

__all__ = ["Prediction", "Predictor", "cosine", "main", "normalise", "predict", "softmax"]

_BATCH = 8


@dataclass(frozen=True)
class Prediction:
    """What one image gave, or the ``error`` that kept it from it.

    Its likeliest ``classes`` with probabilities, ``features`` (D,) and ``patches`` (D, h, w), as far as the bundle has
    them; of a detector ``objects``, the likeliest first. Of a segmentation ``labels`` (H, W) are the numbers of the
    pixels' classes, ``mask`` is the file that holds them where one was written, and ``classes`` are those that occur
    with their shares of the pixels. Of ``missing_pixels`` the file of a deep image gives no values.
    """

    image: str
    classes: tuple[tuple[str, float], ...] = ()
    features: NDArray[np.float32] | None = None
    patches: NDArray[np.float32] | None = None
    objects: tuple[Found, ...] | None = None
    labels: NDArray[np.uint8] | None = None
    mask: str | None = None
    error: str | None = None
    missing_pixels: int = 0

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        found: dict[str, Any] = {"image": self.image}
        if self.missing_pixels:
            found["missing_pixels"] = self.missing_pixels
        if self.mask is not None:
            found["mask"] = self.mask
        if self.classes:
            what = "probability" if self.labels is None else "share"
            found["classes"] = [{"label": name, what: share} for name, share in self.classes]
        if self.objects is not None:
            found["objects"] = [each.as_dict() for each in self.objects]
        if self.features is not None:
            found["features"] = self.features.tolist()
        if self.patches is not None:
            found["patches"] = self.patches.tolist()
        return found

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.image}: {self.error}"
        lines = [f"  {share:.4f}  {name}" for name, share in self.classes]
        for each in self.objects or ():
            lines.append(f"  {each.score:.4f}  {each.label}  at {', '.join(f'{side:.0f}' for side in each.box)}")
        if self.features is not None:
            lines.append(f"  {len(self.features)} features, norm {np.linalg.norm(self.features):.4f}")
        if self.patches is not None:
            width, down, across = self.patches.shape
            lines.append(f"  {width} features of {down} x {across} patches")
        if self.mask is not None:
            lines.append(f"  mask {self.mask}")
        if self.missing_pixels:
            lines.append(f"  {self.missing_pixels:,} pixels have no value in the file, and were taken for black")
        return "\n".join([self.image, *lines])


class Predictor:
    """A verified bundle loaded into ONNX Runtime, ready for images; safe to share between threads."""

    def __init__(
        self, bundle: str | Path | Bundle, device: str = "cpu", precision: Precision = "float32", threads: int = 0
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.manifest = self.bundle.manifest
        self._session = open_session(self.bundle.model(precision), device, threads, precision)
        self.provider: str = self._session.get_providers()[0]
        self._transform = eval_transform(self.manifest.preprocessing)

    @property
    def enough(self) -> tuple[int, int] | None:
        """The (height, width) that `prepare` resizes images to, for `decode`; None if the network does that itself."""
        preprocessing = self.manifest.preprocessing
        return None if preprocessing.in_graph else preprocessing.cover

    def decode(self, file: str | Path | BytesIO, enough: tuple[int, int] | None = None) -> Image.Image:
        """Read an image file as the network was trained to see it; see `ehm.data.decode`."""
        return decode(file, enough=enough, value_range=self.manifest.preprocessing.value_range)

    def prepare(self, image: Image.Image) -> NDArray[np.float32] | NDArray[np.uint8]:
        """An RGB image of any size -> one input: normalised (3, H, W), or its bytes where the graph does the rest."""
        if self.manifest.preprocessing.in_graph:
            return np.asarray(image)
        return normalise(self._transform(image), self.manifest.preprocessing)

    def run(self, inputs: NDArray[Any], names: Sequence[str] = ()) -> dict[str, NDArray[np.float32]]:
        """Inputs of one size, one above the other -> the outputs of those names, by default all: arrays of B rows."""
        names = list(names) or [output.name for output in self.manifest.outputs]
        return dict(zip(names, self._session.run(names, {self.manifest.input.name: inputs}), strict=True))

    def place(self, image: Image.Image, rule: Fit) -> tuple[Placed, NDArray[np.float32]]:
        """An RGB image of any size -> where it lies in a detector's input, and that input (1, 3, H, W)."""
        preprocessing = self.manifest.preprocessing
        blank = np.asarray(preprocessing.mean, np.float32) * 255  # which normalising makes 0
        placed = place(np.asarray(image), rule, preprocessing.image_size, blank)
        return placed, normalise(placed.pixels, preprocessing)[None]

    def detect(self, image: Image.Image, rule: Fit) -> list[Found]:
        """The objects in an RGB image of any size, of a detector's bundle."""
        placed, inputs = self.place(image, rule)
        return found_in(self.run(inputs), placed, rule, self.manifest.labels)

    def mosaic(self, image: Image.Image, rule: Windows) -> Mosaic:
        """An RGB image of any size as the windows that a segmenter's network takes."""
        pixels, preprocessing = resize(image, rule.scale), self.manifest.preprocessing
        return Mosaic(normalise(pixels, preprocessing), preprocessing.image_size, rule.stride)

    def segment(self, image: Image.Image, rule: Windows) -> NDArray[np.uint8]:
        """An RGB image (H, W) of any size -> the number of each pixel's class (H, W), of a segmenter's bundle."""
        mosaic = self.mosaic(image, rule)
        for start in range(0, len(mosaic), BATCH):
            mosaic.add(start, self.run(mosaic.inputs(start, BATCH), ["scores"])["scores"])
        return mosaic.labels((image.height, image.width))

    def describe(self, image: str, outputs: Mapping[str, NDArray[np.float32]], top: int) -> Prediction:
        """One image's row of :meth:`run`'s outputs as a prediction."""
        classes: tuple[tuple[str, float], ...] = ()
        if "logits" in outputs:
            shares = softmax(outputs["logits"])
            best = np.argsort(-shares, kind="stable")[:top]
            classes = tuple((self.manifest.labels[index], float(shares[index])) for index in best)
        return Prediction(image, classes, outputs.get("features"), outputs.get("patches"))


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
    classes to keep; ``device`` is ``cpu``, ``cuda``, ``npu``, ``openvino`` or ``auto``, and ``precision`` which of the
    bundle's networks runs.

    ``out`` gets ``predictions.jsonl`` and, from a bundle that gives them, ``features.npy`` (n, D) float32 with a row
    for each image that was read, in the same order; from one that gives nothing else, ``patches.npy`` (n, D, h, w).
    They take the place of all of an earlier call. A segmentation writes ``masks/NAME.png`` there instead, label images
    with a palette, in the size of each image. ``index`` adds ``index.faiss``, an index of the features for
    ``ehm serve --index``: ``flat`` (exact), ``hnsw`` or ``ivf``. ``json`` prints one object a line; else nothing is
    printed.

    Raises ExportError for a damaged bundle or one without that precision, BackendError for a device that is not there,
    DataError for a folder without images.
    """
    files, done = _inputs(images, out), []
    predictor = Predictor(bundle, device, precision)
    _check_index(predictor, index, out)
    for prediction in _predictions(predictor, files, top, out):
        done.append(prediction)
        if json:
            _print_json(prediction)
    if out is not None:
        _save(Path(out), done, index)
    return done


def main(
    bundle: str | Path,
    images: Sequence[str | Path],
    *,
    top: int = 5,
    device: str = "auto",
    precision: Precision = "float32",
    out: str | Path | None = None,
    index: IndexKind | None = None,
    json: bool = False,
) -> int:
    """The command ``ehm predict``: :func:`predict` that says what it does, prints a prediction an image, and returns 1
    if any could not be read, else 0. With ``json`` standard output has the objects and nothing else.
    """
    files = _inputs(images, out)
    predictor = Predictor(bundle, device, precision)
    _check_index(predictor, index, out)
    notes = PlainConsole(stderr=True)
    each = 0 if predictor.manifest.fit else 1  # a detector's outputs are those of one image
    what = ", ".join(
        f"{output.name} {' x '.join(map(str, output.shape[each:]))}" for output in predictor.manifest.outputs
    )
    count = f"{len(files)} image{'s' * (len(files) != 1)}"
    notes.print(f"{count} with {bundle} ({what}; {precision}) on {predictor.provider}")
    done: list[Prediction] = []
    hidden = sys.stdout.isatty() or not notes.is_terminal
    with Progress(console=notes, transient=True, disable=hidden) as progress:
        for prediction in progress.track(
            _predictions(predictor, files, top, out), total=len(files), description="predict"
        ):
            done.append(prediction)
            if json:
                _print_json(prediction)
            elif prediction.error is None:
                print_line(str(prediction))
            else:
                notes.print(f"ehm predict: {prediction}")
    if out is not None:
        _save(Path(out), done, index)
        notes.print(f"results in {out}")
    failed = sum(prediction.error is not None for prediction in done)
    if failed:
        notes.print(f"ehm predict: {failed} of {count} could not be read")
    return 1 if failed else 0


def normalise(pixels: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Bytes (..., H, W, 3) -> (..., 3, H, W): minus the mean, divided by the standard deviation."""
    mean, std = (np.asarray(values, np.float32).reshape(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    normalised: NDArray[np.float32] = (np.moveaxis(pixels.astype(np.float32), -1, -3) - mean * 255) / (std * 255)
    return normalised


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities over the last axis, in float64; the largest logit is subtracted so that nothing overflows."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    shares: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """(B, …) and (B, …) -> the cosine of each pair of rows (B,)."""
    x, y = (values.reshape(len(values), -1).astype(np.float64) for values in (a, b))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines: NDArray[np.float64] = np.sum(x * y, axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return cosines


def _inputs(images: str | Path | Sequence[str | Path], out: str | Path | None) -> list[Path]:
    """The files; a place that cannot hold results is said before there are any."""
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"--out {out}: is no folder")
    return _files(images)


def _check_index(predictor: Predictor, index: IndexKind | None, out: str | Path | None) -> None:
    """What cannot become an index is said before there are results."""
    if index is None:
        return
    faiss_index.check(index)
    refuse_undecodable(Path(out or ""), "faiss")
    if out is None:
        raise ConfigError(f"--index {index}: needs --out, the folder for it")
    if predictor.manifest.output("features") is None:
        raise ConfigError(f"--index {index}: the bundle gives no features; ehm export --head features, or multi, does")


def _files(images: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files as they were given, and the images below each folder in the order of their names."""
    files: list[Path] = []
    for path in map(Path, [images] if isinstance(images, str | Path) else images):
        if path.is_dir():
            visible = (file for file in path.rglob("*") if not file.name.startswith(".") and not file.is_dir())
            found = sorted(file for file in visible if file.suffix.lower() in SUFFIXES)
            if not found:
                raise DataError(f"{path}: no images below this folder; known are {', '.join(sorted(SUFFIXES))}")
            files += found
        else:
            files.append(path)
    return files


def _predictions(predictor: Predictor, files: Sequence[Path], top: int, out: str | Path | None) -> Iterator[Prediction]:
    if top < 1:
        raise ConfigError(f"--top {top}: expected at least 1")
    if predictor.manifest.fit is not None:
        yield from _detections(predictor, predictor.manifest.fit, files)
        return
    if predictor.manifest.windows is not None:
        yield from _segmentations(predictor, predictor.manifest.windows, files, top, None if out is None else Path(out))
        return
    given = [output.name for output in predictor.manifest.outputs]
    names = [name for name in given if name != "patches"] or given  # which are large, and nobody reads beside others
    with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
        for start in range(0, len(files), _BATCH):
            chunk = files[start : start + _BATCH]
            read = list(pool.map(lambda file: _read(predictor, file), chunk))
            inputs = {index: item for index, item in enumerate(read) if isinstance(item, _Input)}
            sizes: dict[tuple[int, ...], list[int]] = {}
            for index, item in inputs.items():
                sizes.setdefault(item.values.shape, []).append(index)
            rows: dict[int, dict[str, NDArray[np.float32]]] = {}
            for indices in sizes.values():  # one, unless the graph takes images of any size
                outputs = predictor.run(np.stack([inputs[index].values for index in indices]), names)
                rows |= {index: {key: v[row] for key, v in outputs.items()} for row, index in enumerate(indices)}
            for index, (file, found) in enumerate(zip(chunk, read, strict=True)):
                if isinstance(found, str):
                    yield Prediction(str(file), error=found)
                else:
                    described = predictor.describe(str(file), rows[index], top)
                    yield replace(described, missing_pixels=found.missing_pixels)


def _detections(predictor: Predictor, rule: Fit, files: Sequence[Path]) -> Iterator[Prediction]:
    for file in files:
        try:
            image = predictor.decode(file)
        except BrokenImage as error:
            yield Prediction(str(file), error=str(error).removeprefix(f"{file}: "))
        else:
            objects = tuple(predictor.detect(image, rule))
            yield Prediction(str(file), objects=objects, missing_pixels=count_missing(image))


def _segmentations(
    predictor: Predictor, windows: Windows, files: Sequence[Path], top: int, out: Path | None
) -> Iterator[Prediction]:
    """One image after the other: their sizes differ, and a mask that was written is not kept."""
    taken: set[str] = set()
    if out is not None:
        _remove_masks(out)
    for file in files:
        try:
            image = predictor.decode(file)
        except BrokenImage as error:
            yield Prediction(str(file), error=str(error).removeprefix(f"{file}: "))
            continue
        labels = predictor.segment(image, windows)
        shares = np.bincount(labels.ravel(), minlength=len(predictor.manifest.labels)) / labels.size
        best = [index for index in np.argsort(-shares, kind="stable")[:top] if shares[index]]
        classes = tuple((predictor.manifest.labels[index], float(shares[index])) for index in best)
        mask = None if out is None else write_mask(labels, out / "masks", file.stem, taken)
        kept = labels if out is None else labels[:0]
        yield Prediction(str(file), classes, labels=kept, mask=mask, missing_pixels=count_missing(image))


def _remove_masks(out: Path) -> None:
    """Those of an earlier call, which its predictions name."""
    earlier = out / "predictions.jsonl"
    for line in read_text(earlier).splitlines() if earlier.is_file() else ():
        entry = parse_json(line, str(earlier))
        mask = entry.get("mask") if isinstance(entry, dict) else None
        if mask is not None and Path(mask).parent == out / "masks":
            Path(mask).unlink(missing_ok=True)


class _Input(NamedTuple):
    """The network's input made from a file, and how many pixels of it have no value."""

    values: NDArray[np.float32] | NDArray[np.uint8]
    missing_pixels: int


def _read(predictor: Predictor, file: Path) -> _Input | str:
    """The input that ``file`` gives, or the reason why it gives none."""
    try:
        image = predictor.decode(file, predictor.enough)
    except BrokenImage as error:
        return str(error).removeprefix(f"{file}: ")
    return _Input(predictor.prepare(image), count_missing(image))


def _print_json(prediction: Prediction) -> None:
    print_line(json_module.dumps(prediction.as_dict()))


def _save(out: Path, predictions: Sequence[Prediction], index: IndexKind | None) -> None:
    bare = (replace(prediction, features=None, patches=None) for prediction in predictions)  # which are arrays below
    lines = "".join(json_module.dumps(prediction.as_dict()) + "\n" for prediction in bare)
    with replace_file(out / "predictions.jsonl") as temporary:  # it gets its name last, when all files belong together
        temporary.write_text(lines, encoding="utf-8")
        (out / faiss_index.FILE).unlink(missing_ok=True)
        for name in ("features", "patches"):
            rows = [values for prediction in predictions if (values := getattr(prediction, name)) is not None]
            (out / f"{name}.npy").unlink(missing_ok=True)  # an earlier call's, whose rows are other images
            if rows:
                with replace_file(out / f"{name}.npy") as array:
                    np.save(array, np.stack(rows))
                if index is not None and name == "features":
                    faiss_index.write_index(out, np.stack(rows), index)
