"""The images on which precisions of an offline model are compared: photographs if there are any, else made-up ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config import CalibrationConfig
from ehm.console import console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.predict.input_files import find_images
from ehm.deploy.predict.parity_images import make_inputs
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import ConfigError, DataError

__all__ = ["Samples", "find_samples", "make_samples", "read_samples"]

_MOST_IMAGES = 64
"""Images that outputs are compared on: each also runs on the CPU."""


@dataclass(frozen=True)
class Samples:
    """Inputs of a network on which precisions are compared: ``iterate`` yields batches (B, ...) made of ``source``."""

    source: str
    iterate: Callable[[], Iterator[NDArray[Any]]]


def find_samples(bundle: Bundle, config: CalibrationConfig) -> Samples:
    """Return photographs that training held out, or made-up pictures if it is not known which these are."""
    from ehm.deploy.export.precision.calibration import choose_images

    manifest = bundle.manifest
    try:
        _, measured = choose_images(config, manifest.source, manifest.preprocessing.pixels)
    except (ConfigError, DataError) as error:
        console.print(f"ATC's precisions are compared on made-up pictures: {error}")
        return make_samples(bundle)
    predictor = Predictor(bundle)
    prepare = partial(predictor.handler.prepare_sample, predictor)
    few = replace(measured, count=min(measured.count, _MOST_IMAGES))

    def iterate() -> Iterator[NDArray[Any]]:
        for _, inputs in few.iterate_batches(prepare, 1, "measure"):
            yield inputs

    return Samples(str(measured), iterate)


def make_samples(bundle: Bundle) -> Samples:
    """Return made-up pictures as inputs, for a network of which no photographs are known."""

    def iterate() -> Iterator[NDArray[Any]]:
        for _, inputs, _ in make_inputs(bundle.manifest.preprocessing):
            yield inputs

    return Samples("made-up pictures", iterate)


def read_samples(bundle: Bundle, images: Sequence[str]) -> Samples:
    """Return photographs as inputs, one by one."""
    predictor = Predictor(bundle)
    files = find_images(images, bundle.manifest.preprocessing.pixels)[:_MOST_IMAGES]

    def iterate() -> Iterator[NDArray[Any]]:
        for file in files:
            yield predictor.handler.prepare_sample(predictor, predictor.decode(file))[np.newaxis]

    return Samples(", ".join(images), iterate)
