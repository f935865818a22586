"""The photographs that int8 takes its ranges from, and those that other numbers are measured on.

Of one source, never the same ones.

Shapes: B images; what an image becomes is the bundle's input.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

from ehm import checkpoint
from ehm.config import CalibrationConfig, DataConfig, FinetuneConfig, RetrievalConfig
from ehm.console import console
from ehm.data import open_source
from ehm.deploy.bundle import Source
from ehm.errors import BrokenImage, ConfigError, DataError
from ehm.tasks.labelled import Part, split
from ehm.tasks.retrieval import parts

__all__ = ["Photographs", "choose"]

Prepare = Callable[[Image.Image], NDArray[Any]]


@dataclass(frozen=True)
class Photographs:
    """The first ``count`` images of ``part`` that can be read, in a random order that is always the same."""

    origin: str
    part: Part
    count: int

    def __str__(self) -> str:
        return f"{self.origin} ({self.part.title})"

    def batches(self, prepare: Prepare, size: int, title: str) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Numbers (B,) of up to ``size`` images in the source, and the (B, …) that ``prepare`` makes of them.

        Draws a progress bar named ``title``. Raises DataError where no image can be read.
        """
        images = islice(self._readable(prepare), self.count)
        first = next(images, None)
        if first is None:
            raise DataError(f"calibration: none of the {len(self.part)} images of {self} can be read")
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(title, total=min(self.count, len(self.part)))
            batch = [first, *islice(images, size - 1)]
            while batch:
                numbers, inputs = zip(*batch, strict=True)
                yield np.array(numbers), np.stack(inputs)
                progress.advance(task, len(batch))
                batch = list(islice(images, size))

    def _readable(self, prepare: Prepare) -> Iterator[tuple[int, NDArray[Any]]]:
        for number in _order(self.part):
            try:
                yield int(number), prepare(self.part.source.load(int(number)))
            except BrokenImage:
                continue


def choose(config: CalibrationConfig, source: Source) -> tuple[Photographs, Photographs]:
    """What to calibrate on, and what to measure on.

    By default what the checkpoint was trained on, and what its training held out. To measure on the source that
    calibrates is to leave ``measure`` out: only images of it that calibrate nothing are taken. Raises ConfigError
    where neither the checkpoint nor ``config`` names images, and DataError where they are not there or too few.
    """
    try:
        origin, calibration, rest = _of_checkpoint(source) if config.source is None else _of(config.source)
        measure = config.measure
        if measure is not None and os.path.realpath(measure) == os.path.realpath(origin):
            measure = None
        if rest is None:
            order = _order(calibration)
            if measure is None and len(order) <= config.images:
                raise DataError(
                    f"calibration.images {config.images}: leaves none of the {len(order)} images of {origin} to "
                    "measure on; take fewer, or name others with calibration.measure"
                )
            used, others = order[: config.images], order[config.images :]
            calibration, rest = Part(calibration.source, used, "drawn"), Part(calibration.source, others, "the others")
        measured = Photographs(origin, rest, config.measure_images)
        if measure is not None:
            origin_measured, whole, held_out = _of(measure)
            measured = Photographs(origin_measured, held_out or whole, config.measure_images)
    except DataError as error:
        key = "measure" if config.measure and config.measure in str(error) else "source"
        raise DataError(str(error).replace("data.source", f"calibration.{key}")) from None
    return Photographs(origin, calibration, config.images), measured


def _of_checkpoint(source: Source) -> tuple[str, Part, Part | None]:
    if source.kind in ("file", "timm"):
        raise ConfigError(
            f"--int8, --float16: {source.checkpoint} does not say what it was trained on; "
            "--set calibration.source=FOLDER names images like those that it will see"
        )
    values = checkpoint.describe(checkpoint.resolve(source.checkpoint))["config"]
    if source.kind == "embedder":
        retrieval = RetrievalConfig.model_validate(values)
        return retrieval.data.source, *parts(retrieval)
    if source.kind != "classifier":
        return _of(values["data"]["source"], values["data"]["layout"])
    config = FinetuneConfig.model_validate(values)
    return config.data.source, *split(config)


def _of(origin: str, layout: str = "auto") -> tuple[str, Part, Part | None]:
    """Training images of a source, and its validation images where it has a part of them."""
    config = DataConfig.model_validate({"source": origin, "layout": layout})
    train = open_source(config, "train")
    if train.split != "train":
        return origin, Part(train, None, "all"), None
    return origin, Part(train, None, "train"), Part(open_source(config, "val"), None, "val")


def _order(part: Part) -> NDArray[np.int64]:
    numbers = np.arange(len(part.source)) if part.subset is None else part.subset
    return np.random.default_rng(0).permutation(numbers)
