"""The differences between the kinds of bundles behind one interface; each task implements it in a file of its own.

``ehm predict``, ``ehm serve``, ``ehm bench``, the conversion for other engines and the model card ask a handler, so
that none of them asks for the task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.decoding.depth import count_missing
from ehm.deploy.bundle.manifest import COMPARED_OUTPUTS, Manifest
from ehm.deploy.bundle.preprocessing import find_seen_region
from ehm.deploy.predict.comparison import Comparison, compute_cosines
from ehm.deploy.predict.prediction import Prediction
from ehm.deploy.predict.preparation import describe_preparation, write_preparation_code
from ehm.errors import BrokenImage

if TYPE_CHECKING:
    from ehm.deploy.predict.predictor import Predictor

__all__ = [
    "CardTexts",
    "Handler",
    "HandlerT",
    "NamedImage",
    "Outputs",
    "PredictionOptions",
    "SingleImageHandler",
    "describe_error",
]

Outputs = Mapping[str, NDArray[np.float32]]
"""The network's outputs by name."""


@dataclass(frozen=True)
class NamedImage:
    """An image that is read when its turn comes.

    ``load`` returns it in RGB, given a size (height, width) that is enough (`decode_image`), and raises BrokenImage.
    """

    name: str
    load: Callable[[tuple[int, int] | None], Image.Image]


@dataclass(frozen=True)
class PredictionOptions:
    """The options of one call: how many classes to keep, the folder for files if there is one, and the names taken.

    ``threads`` read images; None takes as many as there are processors, and some more.
    """

    top: int = 5
    out: Path | None = None
    threads: int | None = None
    taken_names: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class CardTexts:
    """The words of a model card for a task: the title, the Hugging Face Hub's tag, and the Hub's name of its figure."""

    title: str
    hub_tag: str
    hub_metric: str = ""


class Handler(ABC):
    """The behaviour of one kind of bundle, from an image to its prediction."""

    card: ClassVar[CardTexts]
    takes_batches: ClassVar[bool] = True
    """False for a network that takes one image, and whose outputs have no batch dimension."""
    tensor_refusal: ClassVar[str | None] = None
    """The reason why the server takes no tensors for this kind of model, if it does not."""
    agreement: ClassVar[str] = "the same class for {:.1%}"
    """A phrase for the share of answers that two networks have in common."""
    missing: ClassVar[str] = ""
    """The part that a model of another kind lacks if it is asked for this kind of answer."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @abstractmethod
    def predict_images(
        self, predictor: Predictor, images: Sequence[NamedImage], options: PredictionOptions
    ) -> Iterator[Prediction]:
        """Yield the prediction of each image, in order; an image that cannot be read gives one with an error."""

    def predict_files(
        self, predictor: Predictor, files: Sequence[Path], options: PredictionOptions
    ) -> Iterator[Prediction]:
        """Yield the prediction of each image file; see `predict_images`."""
        images = [NamedImage(str(file), partial(predictor.decode, file)) for file in files]
        return self.predict_images(predictor, images, options)

    def find_seen_region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of an image that the network sees: left, top, width and height in the image's pixels."""
        return find_seen_region(width, height, self.manifest.preprocessing)

    def prepare_sample(self, predictor: Predictor, image: Image.Image) -> NDArray[Any]:
        """Return one input made of an image, on which networks are calibrated, compared and timed."""
        return predictor.prepare(image)

    @property
    def measured_outputs(self) -> list[str]:
        """The outputs by which a network in lower precision is compared with float32."""
        names = [self.manifest.compared_output]
        if names[0] != "logits" and self.manifest.output("logits"):
            names.append("logits")
        return names

    @property
    def compared(self) -> str:
        """A noun for what the cosines of `compare` are between."""
        return self.manifest.compared_output

    def compare(self, expected: Outputs, found: Outputs) -> Comparison:
        """Compare the outputs of a batch with those in float32: all that are ``measured_outputs``, or some of them."""
        name = next(name for name in COMPARED_OUTPUTS if name in found)
        cosines = compute_cosines(expected[name], found[name])
        if "logits" not in found:
            return Comparison(cosines)
        same = expected["logits"].argmax(axis=1) == found["logits"].argmax(axis=1)
        return Comparison(cosines, same.astype(np.float64))

    def add_batch_axis(self, outputs: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Return outputs with a row for each image of the batch, also if the network has no batch dimension."""
        if self.takes_batches:
            return outputs
        return {name: values[np.newaxis] for name, values in outputs.items()}

    def describe_outputs(self) -> str:
        """Name the outputs with their sizes for one image, for a line of a log: ``logits 3, features 192``."""
        first = 1 if self.takes_batches else 0  # the dimension behind the batch
        parts = []
        for output in self.manifest.outputs:
            sizes = " x ".join(map(str, output.shape[first:]))
            parts.append(f"{output.name} {sizes}")
        return ", ".join(parts)

    def describe_input(self) -> str:
        """Say in a sentence how an image becomes the network's input, for the model card."""
        rule = self.manifest.preprocessing
        colours = "RGB" if rule.pixels.is_rgb else rule.pixels.describe()
        subject = f"Before the graph, in {colours}"
        if rule.in_graph:
            subject = f"The graph takes decoded {colours}{' bytes' * rule.pixels.is_rgb} and does this itself"
        return f"{subject}: {describe_preparation(rule)}, normalise ({self._describe_normalisation()})."

    def write_example_code(self) -> list[str]:
        """Return lines of Python that run the network on a photograph without ehm; none if that takes too many."""
        if not self.manifest.preprocessing.pixels.is_rgb:
            return []  # reading and scaling the files takes too many lines
        # one output is enough to show how it works
        output = self.manifest.outputs[0].name
        file = self.manifest.models["float32"].file
        return [
            "import numpy, onnxruntime",
            "from PIL import Image",
            'image = Image.open("photo.png").convert("RGB")',
            *write_preparation_code(self.manifest.preprocessing),
            f'session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])',
            f'(values,) = session.run(["{output}"], {{"{self.manifest.input.name}": inputs}})',
        ]

    def _describe_normalisation(self) -> str:
        rule = self.manifest.preprocessing
        values = "bytes / 255" if rule.pixels.is_rgb else f"values / {rule.pixels.white:g}"
        return f"mean {list(rule.mean)}, std {list(rule.std)} of {values}"


HandlerT = TypeVar("HandlerT", bound=Handler)


class SingleImageHandler(Handler):
    """A handler of images in their own size: one after the other, nothing cropped."""

    @abstractmethod
    def predict_image(
        self, predictor: Predictor, file: Path, image: Image.Image, options: PredictionOptions
    ) -> Prediction:
        """Return the prediction of an RGB image of any size, which was read from ``file``."""

    def predict_images(
        self, predictor: Predictor, images: Sequence[NamedImage], options: PredictionOptions
    ) -> Iterator[Prediction]:
        """Yield the prediction of each image; see `Handler.predict_images`."""
        for named in images:
            try:
                image = named.load(None)
            except BrokenImage as error:
                yield describe_error(named.name, error)
                continue
            prediction = self.predict_image(predictor, Path(named.name), image, options)
            yield replace(prediction, missing_pixels=count_missing(image))

    def find_seen_region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the whole image."""
        return 0.0, 0.0, float(width), float(height)


def describe_error(name: str, error: BrokenImage) -> Prediction:
    """Return the prediction of an image that cannot be read; its name is not repeated in the reason."""
    return Prediction(name, error=str(error).removeprefix(f"{name}: "))
