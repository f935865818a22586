"""Features of images, and the way through a network that takes batches.

Shapes: B images of a batch, D features, h x w patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.decoding.depth import count_missing
from ehm.deploy.predict.handler import CardTexts, Handler, NamedImage, Outputs, PredictionOptions, describe_error
from ehm.deploy.predict.prediction import Prediction
from ehm.errors import BrokenImage

if TYPE_CHECKING:
    from ehm.deploy.predict.predictor import Predictor

__all__ = ["FeaturesHandler"]

_BATCH = 8
"""Images that are read at the same time, and run together."""


@dataclass(frozen=True)
class _Input:
    """The network's input made from a file, and how many pixels of it have no value."""

    values: NDArray[Any]
    missing_pixels: int


class FeaturesHandler(Handler):
    """A bundle that gives a row of features, or of patches, for each image of a batch."""

    card = CardTexts("Image encoder", "image-feature-extraction")

    def describe(self, image: str, outputs: Outputs, top: int) -> Prediction:
        """Return the row of one image in the network's outputs as a prediction with ``top`` classes."""
        return Prediction(image, (), outputs.get("features"), outputs.get("patches"))

    def predict_images(
        self, predictor: Predictor, images: Sequence[NamedImage], options: PredictionOptions
    ) -> Iterator[Prediction]:
        """Yield the prediction of each image; see `Handler.predict_images`. Threads read the batch after this one."""
        names = self._choose_outputs()
        # decoding releases the interpreter, so threads read images side by side
        with ThreadPoolExecutor(options.threads, thread_name_prefix="decode") as pool:
            reading = _start_reading(pool, predictor, images[:_BATCH])
            for start in range(0, len(images), _BATCH):
                results = [future.result() for future in reading]
                reading = _start_reading(pool, predictor, images[start + _BATCH : start + 2 * _BATCH])
                rows = _run_inputs(predictor, results, names)
                for index, result in enumerate(results):
                    if isinstance(result, Prediction):
                        yield result
                    else:
                        described = self.describe(images[start + index].name, rows[index], options.top)
                        yield replace(described, missing_pixels=result.missing_pixels)

    def _choose_outputs(self) -> list[str]:
        """Return the outputs to compute: patches are large, and nobody reads them beside others."""
        names = self.manifest.output_names
        without_patches = [name for name in names if name != "patches"]
        return without_patches or names


def _start_reading(
    pool: ThreadPoolExecutor, predictor: Predictor, images: Sequence[NamedImage]
) -> list[Future[_Input | Prediction]]:
    """Let threads read images, and return what will become of each."""
    return [pool.submit(_read_input, predictor, image) for image in images]


def _read_input(predictor: Predictor, named: NamedImage) -> _Input | Prediction:
    """Return the input made of an image, or the prediction that says why the image cannot be read."""
    try:
        image = named.load(predictor.sufficient_size)
    except BrokenImage as error:
        return describe_error(named.name, error)
    return _Input(predictor.prepare(image), count_missing(image))


def _run_inputs(
    predictor: Predictor, results: Sequence[_Input | Prediction], names: Sequence[str]
) -> dict[int, dict[str, NDArray[np.float32]]]:
    """Return the outputs of the inputs among ``results``, by their indices there."""
    # there is one size, unless the graph takes images of any size
    indices_by_shape: dict[tuple[int, ...], list[int]] = {}
    inputs: dict[int, NDArray[Any]] = {}
    for index, result in enumerate(results):
        if isinstance(result, _Input):
            inputs[index] = result.values
            indices_by_shape.setdefault(result.values.shape, []).append(index)
    rows: dict[int, dict[str, NDArray[np.float32]]] = {}
    for indices in indices_by_shape.values():
        outputs = predictor.run(np.stack([inputs[index] for index in indices]), names)
        for row, index in enumerate(indices):
            rows[index] = {name: values[row] for name, values in outputs.items()}
    return rows


HANDLER = FeaturesHandler
"""The handler of the task that this file is named after; ``create_handler`` finds it by that name."""
