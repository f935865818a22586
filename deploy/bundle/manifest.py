"""The manifest of a bundle: input, outputs, preprocessing, labels, origin and the SHA-256 of every file.

``docs/export.md`` explains each field. A later version of ehm may add keys, which this one ignores; a change of a key's
meaning raises `FORMAT`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ehm.config.pixel_format import Depth, PixelFormat
from ehm.errors import ExportError
from ehm.storage.reading import describe_value, read_json

__all__ = [
    "CARD",
    "COMPARED_OUTPUTS",
    "FORMAT",
    "MANIFEST",
    "OFFLINE_MODEL",
    "Ascend",
    "AtcPrecision",
    "AtcTrial",
    "BatchRange",
    "FileRecord",
    "Fit",
    "IndexKind",
    "Language",
    "Manifest",
    "ModelRecord",
    "OfflineParity",
    "Parity",
    "ParityCase",
    "Precision",
    "Preprocessing",
    "Quality",
    "Source",
    "Target",
    "Task",
    "TensorRecord",
    "Windows",
    "read_manifest",
]

FORMAT = 2
"""The format that is written: 1, of ehm 0.1.0, had one network with one output, and is read too."""
MANIFEST = "manifest.json"
CARD = "README.md"
"""The one file that no network needs: people complete it before they publish, so it is hashed and never refused."""
OFFLINE_MODEL = "model.om"
"""The network as ATC compiled it for an NPU. Made after the export, by atc.sh, it is not in the manifest."""

COMPARED_OUTPUTS = ("features", "logits", "patches", "visual_tokens")
"""The outputs whose direction is compared, the first that there is.

That of features says the most, as it does not depend on how decided the network is.
"""
Precision = Literal["float32", "float16", "int8"]
AtcPrecision = Literal["fp16", "mixed", "origin"]
"""The precisions of offline models, the fastest first; ``origin`` are the types of the graph."""
IndexKind = Literal["flat", "hnsw", "ivf"]
Target = Literal["onnxruntime", "portable", "ascend"]
Task = Literal["classification", "multi_label", "features", "segmentation", "detection", "visual_tokens"]


class _Section(BaseModel):
    # keys that a later version adds are ignored; one that changes a meaning raises FORMAT
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class TensorRecord(_Section):
    """An input or output of the network; a text in ``shape`` names a dynamic dimension.

    ``smallest`` is the least number of pixels of a dynamic height or width, as far as it is known: those of a patch.
    """

    name: str
    dtype: Literal["float32", "uint8", "uint16", "int64"]
    layout: Literal["NCHW", "NHWC", "NC", "NHW", "NLC", "N"]
    shape: tuple[int | str, ...]
    smallest: int | None = None


class Preprocessing(_Section):
    """The steps from an image file to the network's input, in this order.

    Decode to RGB; ``resize`` by ``interpolation``: ``cover`` keeps the proportions and just covers ``cover`` (height,
    width), ``squash`` gives exactly that size, ``fit`` keeps the proportions and just fits into it. A side that does
    not decide about the scale is rounded ``down`` or to the ``nearest`` number of pixels. Cut ``image_size`` from the
    centre; what lies outside of the image becomes ``fill`` (if it is an odd number of pixels, the longer part lies at
    the right and below). Divide the bytes by 255; subtract ``mean`` and divide by ``std``. ``in_graph`` says that the
    network does everything behind the decoding itself, on bytes (B, H, W, 3) of any size.

    ``value_range`` are the values that become 0 and 255 in images of more than 8 bits; without it they follow from the
    type of the values. Of a very long image that is to ``cover``, the central part is cut out before it is resized
    (``ehm/data/long_images.py``).

    If ``colour`` is ``none``, images are no photographs: they have ``channels`` of ``depth``, 8 or 16 bits or floating
    point, which nothing converts; ``channel_names`` are those of the training. Their values go from 0 to 255, to 65535
    or to 1, which stand for ``value_range``, or with ``window`` for what a DICOM file says, and are divided by the
    largest of these instead of by 255.

    What older manifests leave out has the meaning that it had then: the defaults.
    """

    in_graph: bool = False
    value_range: tuple[float, float] | None = None

    colour: Literal["RGB", "none"] = "RGB"
    channels: int = 3
    channel_names: tuple[str, ...] = ()
    depth: Depth = 8
    window: bool = False
    image_size: tuple[int, int]
    resize: Literal["cover", "squash", "fit"] = "cover"
    cover: tuple[int, int]
    rounding: Literal["down", "nearest"] = "down"
    crop: Literal["centre"] = "centre"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: tuple[int | float, ...] = (0, 0, 0)
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _check_channels(self) -> Preprocessing:
        for name in ("mean", "std", "fill"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {self.channels} channels")
        return self

    @property
    def pixels(self) -> PixelFormat:
        """The channels and the depth of images, and how their files are read."""
        return PixelFormat(self.channel_names or self.channels, self.depth, self.value_range, self.window)


class Fit(_Section):
    """The rule by which a detector takes an image of any size and gives objects of that image.

    Resize the image (bilinear, no smoothing first), proportions kept, until its shorter side has ``shorter`` pixels or
    its longer one ``longer``, and no larger than ``image_size``; normalise it and put it into the upper left of zeros
    of that size. Objects of a score above ``threshold`` count.
    """

    shorter: int
    longer: int
    threshold: float


class Windows(_Section):
    """The rule by which a segmenter takes an image of any size in windows and gives a mask of that image.

    Resize it (bilinear), proportions kept, to the largest size within ``scale`` = (long side, short side), or not at
    all; pad it on the right and below to ``image_size`` at least; cut windows of that size, ``stride`` (down, across)
    pixels apart, the last ones moved to lie inside; average the scores of windows that overlap, and enlarge them
    (bilinear) to the image's own size.
    """

    scale: tuple[int, int] | None
    stride: tuple[int, int]


class Language(_Section):
    """The language model that reads the visual tokens of a bundle, and the words around them.

    It is not part of the bundle: its kind, the ``width`` of its embedded tokens and the SHA-256 of its ``weights``, as
    checkpoints keep it, tell which one it is. It reads ``before``, the visual tokens, ``after`` and ``prompt``, whose
    ``{question}`` is replaced; ``chat`` says that this stands in its chat template.
    """

    source: str
    model_type: str
    width: int
    weights: str
    before: str
    after: str
    prompt: str
    chat: bool = False


class Quality(_Section):
    """A comparison of a network in lower precision with the one in float32, on ``images`` photographs of ``source``.

    ``cosine`` is the mean cosine between the outputs of both, ``cosine_min`` the smallest: of features if the network
    gives them, else of logits, whose direction means little if all are near 0, of the scores of all pixels, or of
    boxes, scores and masks of the objects that both find. ``agreement`` is the share of images with the same likeliest
    class, of pixels with the same class, or of objects that both find; ``accuracy`` and ``accuracy_float32`` are the
    shares of right ones, if the images have labels of the model's. ``default_cosine``, ``default_cosine_min`` and
    ``default_agreement`` are the same for a session of ONNX Runtime on the CPU with no settings at all, as other
    programs open it.
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
    compares a lower precision with float32.
    """

    file: str
    opset: int
    domains: dict[str, int] = {}
    operators: dict[str, int]
    quality: Quality | None = None


class Source(_Section):
    """The exported checkpoint: the argument, the kind of checkpoint, and the SHA-256 of its weights."""

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

    def describe(self) -> str:
        """Say in a sentence how far the network is from the framework."""
        difference = f"{self.max_abs:.1e}"
        if self.max_relative is not None:
            difference = f"{self.max_relative:.1e} of an output's size"
        name = self.reference.partition(" ")[0]
        return f"Differs from {name} by at most {difference} (allowed {self.tolerance:g}), cosine {self.cosine:.7f}"


class OfflineParity(_Section):
    """Comparison of ``model.om`` on a ``chip`` with float32 in ONNX Runtime, on a number of ``images``.

    ``cosine`` is the smallest of all images and outputs, and ``output`` the one that has it.
    """

    chip: str
    images: int
    cosine: float
    output: str = ""


class AtcTrial(_Section):
    """A precision that was tried on an NPU: the time of a batch of up to eight images, and how near it is to float32.

    ``cosine`` is the smallest on ``images`` of ``source`` and on those of the export; ``agreement`` the share of the
    former with the same answer, as in `Quality`. ``accepted`` if both are large enough.
    """

    precision: AtcPrecision
    milliseconds: float
    source: str
    images: int
    cosine: float
    agreement: float | None = None
    accepted: bool


class Ascend(_Section):
    """The conversion by ATC: the chip, the batch sizes and the precision.

    ``cosine`` is the least that each image must have, and ``agreement`` the least share of the same answers. ``parity``
    is there if ``model.om`` was made and run at export, and ``trials`` if precisions were tried then.
    """

    soc_version: str = ""
    batch_sizes: tuple[int, ...] = ()
    precision: AtcPrecision = "origin"
    cosine: float = 0.999
    agreement: float = 0.99
    parity: OfflineParity | None = None
    trials: tuple[AtcTrial, ...] = ()


class BatchRange(_Section):
    """The batch sizes that a compiler prepares a network for: 1 to ``largest``, and best for ``usual``."""

    usual: int = 8
    largest: int = 32


class FileRecord(_Section):
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


class Manifest(_Section):
    """The content of ``manifest.json``.

    A network of task ``multi_label`` gives a logit x for each label by itself, whose probability is 1 / (1 + exp(-x));
    the label is present if that reaches the label's number in ``thresholds``.
    """

    format: Literal[2] = 2
    task: Task
    target: Target = "portable"
    models: dict[Precision, ModelRecord]
    input: TensorRecord
    outputs: tuple[TensorRecord, ...]
    preprocessing: Preprocessing
    fit: Fit | None = None
    windows: Windows | None = None
    language: Language | None = None
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    source: Source
    versions: dict[str, str]
    parity: Parity
    ascend: Ascend | None = None
    batches: BatchRange = BatchRange()
    files: dict[str, FileRecord] = {}

    @model_validator(mode="after")
    def _check_parts(self) -> Manifest:
        """Refuse a manifest that lacks what its task needs."""
        if "float32" not in self.models:
            raise ValueError("models has no float32")
        if not self.outputs:
            raise ValueError("outputs is empty")
        # servers and clients index labels by class number, so both have to agree
        if self.task in ("classification", "multi_label"):
            logits = self.output("logits")
            if logits is None:
                raise ValueError("a classification without the output logits")
            self._check_labels(logits.shape[-1])
        if self.task == "multi_label" and len(self.thresholds) != len(self.labels):
            raise ValueError(f"{len(self.thresholds)} thresholds for {len(self.labels)} labels")
        if self.task == "detection" and (self.fit is None or self.output("boxes") is None):
            raise ValueError("a detection without fit, or without the output boxes")
        if self.task == "segmentation":
            scores = self.output("scores")
            if scores is None or self.windows is None:
                raise ValueError("a segmentation without the output scores, or without windows")
            self._check_labels(scores.shape[1])
        if self.task == "visual_tokens" and (self.language is None or self.output("visual_tokens") is None):
            raise ValueError("visual tokens without language, or without the output visual_tokens")
        return self

    def _check_labels(self, classes: int | str) -> None:
        if len(self.labels) != classes:
            raise ValueError(f"{len(self.labels)} labels for an output of {classes}")

    @property
    def output_names(self) -> list[str]:
        """The names of the network's outputs, in order."""
        return [output.name for output in self.outputs]

    @property
    def compared_output(self) -> str:
        """The output whose cosines `Quality` has."""
        for name in COMPARED_OUTPUTS:
            if self.output(name):
                return name
        return "scores"

    def output(self, name: str) -> TensorRecord | None:
        """Return the record of an output; None if the network does not give it.

        Encoders give ``logits`` (B, C), ``features`` (B, D) and ``patches`` (B, D, h, w), segmenters ``scores``
        (B, C, H, W), eyes of a language model ``visual_tokens`` (B, K, W), detectors ``boxes`` (K, 4), ``labels`` (K,),
        ``scores`` (K,) and ``masks`` (K, 28, 28).
        """
        for output in self.outputs:
            if output.name == name:
                return output
        return None


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the bundle in ``folder``; raises ExportError that names the file and the wrong key."""
    file = folder / MANIFEST
    if not file.is_file():
        raise ExportError(f"{folder}: not a bundle: it has no {MANIFEST}; ehm export writes one")
    values = read_json(file, ExportError, "a bundle's manifest")
    if not isinstance(values, dict) or "format" not in values:
        raise ExportError(f"{file}: not a bundle's manifest: it has no format")
    # checked before the rest, whose keys may mean something else in another format
    if values["format"] == 1:
        values = _convert_format_1(values)
    if values["format"] != FORMAT:
        found = describe_value(values["format"])
        raise ExportError(
            f"{file}: bundle format {found}; this version of ehm reads {FORMAT}, and ehm export writes it"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        # the first error is enough: a manifest is written by a program and seldom wrong in two places
        key = ".".join(map(str, first["loc"])) or "manifest"
        raise ExportError(f"{file}: {key}: {first['msg'].removeprefix('Value error, ')}") from None


def _convert_format_1(values: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest that ehm 0.1.0 wrote in the present format: it had one network, in float32, with one output."""
    kept = {key: value for key, value in values.items() if key not in ("model", "output")}
    return {**kept, "format": FORMAT, "models": {"float32": values.get("model")}, "outputs": [values.get("output")]}
