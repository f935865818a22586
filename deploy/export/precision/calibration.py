"""The photographs that int8 takes its ranges from, and those that other numbers are measured on.

Of one source, never the same ones.

Shapes: B images; what an image becomes is the bundle's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

from ehm.config import CalibrationConfig, DataConfig, FinetuneConfig, RetrievalConfig
from ehm.console import console
from ehm.data import open_source
from ehm.data.decoding.depth import ValueRange
from ehm.data.sources.identity import identify_source
from ehm.data.subset import Subset
from ehm.deploy.bundle.manifest import Source
from ehm.errors import BrokenImage, ConfigError, DataError
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.held_out import leave_out_seen
from ehm.tasks.images import split
from ehm.tasks.retrieval.task import parts
from ehm.training.training_data import TrainingData, hash_training_images, read_training_data

__all__ = ["Photographs", "choose"]

_THREADS = 2
"""That read names, sizes and bytes of images."""
Prepare = Callable[[Image.Image], NDArray[Any]]


@dataclass(frozen=True)
class Photographs:
    """The first ``count`` images of ``part`` that can be read, in a random order that is always the same."""

    origin: str
    part: Subset
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


def choose(
    config: CalibrationConfig, source: Source, value_range: ValueRange = None
) -> tuple[Photographs, Photographs]:
    """Return what to calibrate on, and what to measure on.

    By default what the checkpoint was trained on, and what its training held out. To measure on the source that
    calibrates, by whatever path, is to leave ``measure`` out: only images that calibrate nothing are taken. Images
    that the checkpoint was trained on are left out of what is measured, and counted. ``value_range`` is the bundle's,
    of images of more than 8 bits. Raises ConfigError if neither the checkpoint nor ``config`` names images, and
    DataError if they are not there, too few, or all known to the network.
    """
    try:
        return _choose(config, source, value_range)
    except DataError as error:
        key = "measure" if config.measure and config.measure in str(error) else "source"
        raise DataError(str(error).replace("data.source", f"calibration.{key}")) from None


def _choose(config: CalibrationConfig, source: Source, value_range: ValueRange) -> tuple[Photographs, Photographs]:
    training = _read_training(source)
    origin, calibration, rest = _of_checkpoint(source) if config.source is None else _of(config.source, value_range)
    held_out = False
    if training is not None and identify_source(calibration.source, _THREADS) == training.train:
        if config.source is not None and training.val == training.train:  # a fold of it was held out
            _, calibration, rest = _of_checkpoint(source, config.source)
        held_out = rest is not None and identify_source(rest.source, _THREADS) == training.val
    measure = config.measure
    if measure is not None and _holds_images_of(measure, calibration):
        measure = None
    if rest is None:
        order = _order(calibration)
        if measure is None and len(order) <= config.images:
            raise DataError(
                f"calibration.images {config.images}: leaves none of the {len(order)} images of {origin} to "
                "measure on; take fewer, or name others with calibration.measure"
            )
        used, others = order[: config.images], order[config.images :]
        calibration, rest = Subset(calibration.source, used, "drawn"), Subset(calibration.source, others, "the others")
    measured, where = rest, origin
    if measure is not None:
        where, whole, val = _of(measure, value_range)
        measured = val or whole
    if measure is not None or not held_out:
        measured = _leave_out_used(measured, where, calibration, config.images, training, source)
    return Photographs(origin, calibration, config.images), Photographs(where, measured, config.measure_images)


def _holds_images_of(origin: str, part: Subset) -> bool:
    """Return whether ``origin`` names the source of ``part``, by whatever path."""
    return identify_source(_of(origin, None)[1].source, _THREADS) == identify_source(part.source, _THREADS)


def _leave_out_used(
    part: Subset, origin: str, calibration: Subset, count: int, training: TrainingData | None, source: Source
) -> Subset:
    """Return ``part`` without images that the checkpoint was trained on, or that calibrate: the first ``count``."""
    if training is not None:
        part = leave_out_seen(part, training.all_seen, f"{source.checkpoint} was trained on", origin, _THREADS)
    used = hash_training_images(calibration.source, _order(calibration)[:count], _THREADS)
    return leave_out_seen(part, used, "calibration takes", origin, _THREADS)


def _read_training(source: Source) -> TrainingData | None:
    """Return what the exported checkpoint knows of its images; None if it is no checkpoint of ours, or an old one."""
    if source.kind in ("file", "timm"):
        return None
    return read_training_data(open_checkpoint(source.checkpoint))


def _of_checkpoint(source: Source, origin: str | None = None) -> tuple[str, Subset, Subset | None]:
    """Return what a checkpoint was trained on and what its training held out.

    ``origin`` is where its images lie now, if not where they lay then.
    """
    if source.kind in ("file", "timm"):
        raise ConfigError(
            f"--int8, --float16: {source.checkpoint} does not say what it was trained on; "
            "--set calibration.source=FOLDER names images like those that it will see"
        )
    values = open_checkpoint(source.checkpoint).metadata["config"]
    if origin is not None:
        values["data"]["source"] = origin
    if source.kind == "embedder":
        retrieval = RetrievalConfig.model_validate(values)
        return retrieval.data.source, *parts(retrieval)
    if source.kind != "classifier":
        return _of(values["data"]["source"], values["data"].get("range"), values["data"]["layout"])
    config = FinetuneConfig.model_validate(values)
    return config.data.source, *split(config)


def _of(origin: str, value_range: ValueRange, layout: str = "auto") -> tuple[str, Subset, Subset | None]:
    """Training images of a source, and its validation images where it has a part of them."""
    config = DataConfig.model_validate({"source": origin, "layout": layout, "range": value_range})
    train = open_source(config, "train")
    if train.split != "train":
        return origin, Subset(train, None, "all"), None
    return origin, Subset(train, None, "train"), Subset(open_source(config, "val"), None, "val")


def _order(part: Subset) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(part.indices)
