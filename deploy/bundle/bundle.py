"""A bundle: one folder that holds a model and all that a service must know to run it. No framework here.

    DIR/model.onnx           the network, weights included (beyond 2 GB they lie in model.onnx.data beside it)
        model.int8.onnx      the same network in other numbers, where they were asked for
        model.float16.onnx
        manifest.json        input, outputs, preprocessing, labels, source, versions, parity with the framework,
                             quality of the other numbers, SHA-256 of every file
        README.md            the model card: documentation, which may be edited or left out

A bundle is written into a temporary folder beside its place and renamed: what carries the final name is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ehm.deploy.bundle.weight_files import find_weight_files
from ehm.errors import ExportError, WriteError
from ehm.storage.checkpoint import flush, sha256
from ehm.storage.names import refuse_undecodable
from ehm.storage.reading import describe_value, read_json
from ehm.storage.writing import report_write_errors, write_text

__all__ = [
    "CARD",
    "FORMAT",
    "Bundle",
    "FileRecord",
    "Fit",
    "IndexKind",
    "Manifest",
    "ModelRecord",
    "Parity",
    "ParityCase",
    "Precision",
    "Preprocessing",
    "Quality",
    "Source",
    "Target",
    "TensorRecord",
    "Windows",
    "staged",
]

FORMAT = 2
Precision = Literal["float32", "float16", "int8"]
IndexKind = Literal["flat", "hnsw", "ivf"]
Target = Literal["onnxruntime", "portable", "ascend"]
CARD = "README.md"
"""The one file that no network needs: people complete it before they publish, so it is hashed and never refused."""
_MANIFEST = "manifest.json"
Triple = tuple[float, float, float]


class _Section(BaseModel):
    # keys that a later version adds are ignored; one that changes a meaning raises FORMAT
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class TensorRecord(_Section):
    """An input or output of the network; a text in ``shape`` names a dynamic dimension.

    A dynamic height or width of the input has ``smallest`` pixels at least, where that is known: those of a patch.
    """

    name: str
    dtype: Literal["float32", "uint8", "int64"]
    layout: Literal["NCHW", "NHWC", "NC", "NHW", "N"]
    shape: tuple[int | str, ...]
    smallest: int | None = None


class Preprocessing(_Section):
    """From an image file to the input, in this order.

    Decode to RGB; ``resize`` by ``interpolation``: ``cover`` keeps the proportions and just covers ``cover`` (height,
    width), ``squash`` gives exactly that size, ``fit`` keeps the proportions and just fits into it. A side that does
    not decide about the scale is rounded ``down`` or to the ``nearest`` number of pixels. Cut ``image_size`` from the
    centre; what lies outside of the image becomes ``fill`` (if it is an odd number of pixels, the longer part lies at
    the right and below). Divide the bytes by 255; subtract ``mean`` and divide by ``std``. ``in_graph`` says that the
    network does everything behind the decoding itself, on bytes (B, H, W, 3) of any size.

    ``value_range`` are the values that become 0 and 255 in images of more than 8 bits; without it they follow from the
    type of the values. Of a very long image that is to ``cover``, the central part is cut out before it is resized
    (``ehm/data/long_images.py``).

    What older manifests leave out has the meaning that it had then: the defaults.
    """

    in_graph: bool = False
    value_range: tuple[float, float] | None = None

    colour: Literal["RGB"] = "RGB"
    image_size: tuple[int, int]
    resize: Literal["cover", "squash", "fit"] = "cover"
    cover: tuple[int, int]
    rounding: Literal["down", "nearest"] = "down"
    crop: Literal["centre"] = "centre"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)
    mean: Triple
    std: Triple


class Fit(_Section):
    """How an image of any size becomes the input of a detector, and its outputs objects of the image.

    Resize it (bilinear, no smoothing first), proportions kept, until its shorter side has ``shorter`` pixels or its
    longer one ``longer``, and no larger than ``image_size``; normalise it and put it into the upper left of zeros of
    that size. Of the objects those of a score above ``threshold`` count.
    """

    shorter: int
    longer: int
    threshold: float


class Windows(_Section):
    """How an image of any size becomes inputs of a segmentation, and their scores a mask.

    Resize it (bilinear), proportions kept, to the largest size within ``scale`` = (long side, short side), or not at
    all; pad it on the right and below to ``image_size`` at least; cut windows of that size, ``stride`` (down, across)
    pixels apart, the last ones moved to lie inside; average the scores where windows overlap, and enlarge them
    (bilinear) to the image's own size.
    """

    scale: tuple[int, int] | None
    stride: tuple[int, int]


class Quality(_Section):
    """A network in other numbers beside the one in float32, on ``images`` photographs of ``source``.

    ``cosine`` is the mean cosine between the outputs of both, ``cosine_min`` the smallest, of features where the
    network gives them and of logits else, whose direction means little where all are near 0; ``agreement`` the share
    of images with the same likeliest class; ``accuracy`` and ``accuracy_float32`` the shares of right ones, where the
    images have labels of the model's. ``default_cosine``, ``default_cosine_min`` and ``default_agreement`` are the same
    for a session of ONNX Runtime on the CPU with no settings at all, as other programs open it.
    """

    source: str
    images: int
    cosine: float
    cosine_min: float
    agreement: float | None = None
    accuracy: float | None = None
    accuracy_float32: float | None = None
    default_cosine: float | None = None
    default_cosine_min: float | None = None
    default_agreement: float | None = None


class ModelRecord(_Section):
    """A network file: its ONNX operator sets and how often each operator occurs.

    ``domains`` are the operator sets beside ONNX's own; their operators are named with their domain. ``quality``
    compares other numbers than float32 with float32.
    """

    file: str
    opset: int
    domains: dict[str, int] = {}
    operators: dict[str, int]
    quality: Quality | None = None


class Source(_Section):
    """What was exported: the argument, the kind of checkpoint, and the SHA-256 of its weights."""

    checkpoint: str
    kind: str
    sha256: str


class ParityCase(_Section):
    """One comparison: largest differences and smallest cosine over the outputs of a batch.

    ``max_relative`` is the largest difference relative to the size of its output, the root mean square of what the
    framework gives. It is None in older bundles, and for detectors, whose ``max_abs`` is in sides of the image already.
    """

    images: Literal["random", "natural"]
    batch: int
    max_abs: float
    max_relative: float | None = None
    cosine: float


class Parity(_Section):
    """Comparison of float32 with the framework that the weights came from.

    No case's ``max_relative`` exceeds ``tolerance``, or its ``max_abs`` if there is no ``max_relative``.
    """

    reference: str
    runtime: str
    tolerance: float
    max_abs: float
    max_relative: float | None = None
    cosine: float
    cases: tuple[ParityCase, ...]


class FileRecord(_Section):
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


class Manifest(_Section):
    """``manifest.json``: docs/export.md explains each field."""

    format: Literal[2] = 2
    task: Literal["classification", "features", "segmentation", "detection"]
    target: Target = "portable"
    models: dict[Precision, ModelRecord]
    input: TensorRecord
    outputs: tuple[TensorRecord, ...]
    preprocessing: Preprocessing
    fit: Fit | None = None
    windows: Windows | None = None
    labels: tuple[str, ...] = ()
    source: Source
    versions: dict[str, str]
    parity: Parity
    files: dict[str, FileRecord] = {}

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        if "float32" not in self.models:
            raise ValueError("models has no float32")
        if not self.outputs:
            raise ValueError("outputs is empty")
        if self.task == "classification":
            logits = self.output("logits")
            if logits is None:
                raise ValueError("a classification without the output logits")
            if len(self.labels) != logits.shape[-1]:
                raise ValueError(f"{len(self.labels)} labels for an output of {logits.shape[-1]}")
        if self.task == "detection" and (self.fit is None or self.output("boxes") is None):
            raise ValueError("a detection without fit, or without the output boxes")
        if self.task == "segmentation":
            scores = self.output("scores")
            if scores is None or self.windows is None:
                raise ValueError("a segmentation without the output scores, or without windows")
            if len(self.labels) != scores.shape[1]:
                raise ValueError(f"{len(self.labels)} labels for an output of {scores.shape[1]}")
        return self

    @property
    def compared(self) -> str:
        """The output whose cosines :class:`Quality` has."""
        return next(name for name in ("features", "logits", "patches", "scores") if self.output(name))

    def output(self, name: str) -> TensorRecord | None:
        """``logits`` (B, C), ``features`` (B, D), ``patches`` (B, D, h, w) or ``scores`` (B, C, H, W), if it has it."""
        return next((output for output in self.outputs if output.name == name), None)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened and verified."""

    path: Path
    manifest: Manifest

    def model(self, precision: Precision = "float32") -> Path:
        """The ONNX file in those numbers; raises ExportError where the bundle has none."""
        if precision not in self.manifest.models:
            raise ExportError(f"{self.path}: holds no {precision} model, only {', '.join(self.manifest.models)}")
        return self.path / self.manifest.models[precision].file

    def version(self, precision: Precision = "float32") -> str:
        """Twelve hexadecimal digits that change with any file of the network: its graph, and weights stored beside it.

        Of a network in one file they are the beginning of its SHA-256. A graph whose weights lie beside it does not
        change with them, so that there the hash is over the names and hashes of all files.
        """
        model = self.manifest.models[precision].file
        files = self.manifest.files
        beside = sorted(find_weight_files(self.path / model))
        if not beside:
            return files[model].sha256[:12]
        lines = [f"{name} {files[name].sha256}\n" for name in (model, *beside)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]

    def want_batches(self, command: str) -> None:
        """ExportError where the network takes one image at a time, a detector's, and ``command`` gives it batches."""
        if self.manifest.task == "detection":
            raise ExportError(f"{self.path}: a detector, which ehm predict and ehm serve run, and {command} does not")

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and verify the bundle at ``path``; raises ExportError naming the file that is missing or was altered.

        Its card may be either.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        for name, record in manifest.files.items():
            file = path / name
            if Path(name).name != name:
                raise ExportError(f"{path / _MANIFEST}: files may not lie outside the bundle: {name!r}")
            if name == CARD:
                continue
            if not file.is_file():
                raise ExportError(f"{file}: missing; the bundle is incomplete")
            if sha256(file) != record.sha256:
                raise ExportError(f"{file}: does not match the SHA-256 in {_MANIFEST}; it was altered or damaged")
        for precision, model in manifest.models.items():
            if model.file not in manifest.files:
                raise ExportError(f"{path / _MANIFEST}: models.{precision}: {model.file!r} is not among its files")
            for name in sorted(find_weight_files(path / model.file) - (manifest.files.keys() - {CARD})):
                raise ExportError(f"{path / _MANIFEST}: {model.file} reads {name!r}, which is not among its files")
        return cls(path, manifest)

    @classmethod
    def seal(cls, folder: Path, manifest: Manifest) -> Bundle:
        """Write the manifest of a folder that holds everything else, with size and SHA-256 of each file."""
        files = {
            file.name: FileRecord(bytes=file.stat().st_size, sha256=sha256(file))
            for file in sorted(folder.iterdir())
            if file.name != _MANIFEST
        }
        manifest = manifest.model_copy(update={"files": files})
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False, ensure_ascii=False)
        write_text(folder / _MANIFEST, text + "\n")
        return cls(folder, manifest)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends, and vanishes if it raises.

    An earlier bundle at ``out`` is replaced; anything else there, an edited card included, raises ExportError before
    the block begins. A WriteError of the block names the file by the place that it would have had in ``out``.
    """
    out = Path(os.path.abspath(out))
    refuse_undecodable(out, "ONNX")
    folder, replaced = (out.with_name(f".{out.name}-{suffix}") for suffix in ("partial", "replaced"))
    if replaced.is_dir() and not out.exists():  # an export was killed between the two renames
        replaced.rename(out)
    _refuse_foreign(out)
    for stale in (folder, replaced):  # what a killed export left
        shutil.rmtree(stale, ignore_errors=True)
    try:
        with report_write_errors(out):
            folder.mkdir(parents=True)
        yield folder
        with report_write_errors(out):
            for path in (*folder.iterdir(), folder):  # complete after a power cut too
                flush(path)
            if out.exists():
                out.rename(replaced)
            folder.rename(out)
            flush(out.parent)
    except WriteError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise WriteError(_final_path(Path(error.path), folder, out), error.reason, error.remedy) from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _final_path(path: Path, folder: Path, out: Path) -> Path:
    """Return the place that a file of the temporary ``folder`` would have had in ``out``, which the user named."""
    return out / path.relative_to(folder) if path.is_relative_to(folder) else path


def _refuse_foreign(out: Path) -> None:
    """Only an empty folder, or a bundle without anything of the user's in it, may be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    advice = "choose another --out, or remove it first"
    if out.is_symlink() or not out.is_dir():
        raise ExportError(f"{out}: exists and is not a folder; {advice}")
    names = {file.name for file in out.iterdir()}
    if not names:
        return
    try:
        files = read_json(out / _MANIFEST, ExportError)["files"]
        own = {_MANIFEST, *files}
        card = files[CARD]["sha256"] if CARD in files else None
    except (ExportError, AttributeError, TypeError, KeyError):
        raise ExportError(f"{out}: exists and is not a bundle; {advice}") from None
    if names - own:
        raise ExportError(f"{out}: holds {sorted(names - own)[0]}, which is not part of the bundle; {advice}")
    if CARD in names and sha256(out / CARD) != card:
        raise ExportError(f"{out}: its {CARD} was edited, and would be lost; {advice}")


def _read_manifest(path: Path) -> Manifest:
    file = path / _MANIFEST
    if not file.is_file():
        raise ExportError(f"{path}: not a bundle: it has no {_MANIFEST}; ehm export writes one")
    values = read_json(file, ExportError, "a bundle's manifest")
    if not isinstance(values, dict) or "format" not in values:
        raise ExportError(f"{file}: not a bundle's manifest: it has no format")
    if values["format"] != FORMAT:
        found = describe_value(values["format"])
        raise ExportError(
            f"{file}: bundle format {found}; this version of ehm reads {FORMAT}, and ehm export writes it"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "manifest"
        raise ExportError(f"{file}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
