"""The images that int8 takes its ranges from, and those that lower precisions are measured on.

No image serves for both, even if they come from one source.

Shapes: B images; what an image becomes is the bundle's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config import CalibrationConfig, DataConfig
from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.data import open_source
from ehm.data.sources.identity import identify_source
from ehm.data.subset import Subset
from ehm.deploy.bundle.manifest import Source
from ehm.errors import BrokenImage, ConfigError, DataError
from ehm.progress_bar import create_progress
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.held_out import leave_out_seen
from ehm.tasks.registry import find_task_by_kind
from ehm.training.training_data import TrainingData, hash_training_images, read_training_data

__all__ = ["ImageSample", "Prepare", "choose_images"]

_THREADS = 2
"""Threads that read names, sizes and bytes of images."""
_KINDS_OF_ONE_IMAGE = ("classifier", "embedder", "segmenter", "detector", "answerer")
"""Kinds of checkpoints that were trained on one image at a time, with or without what belongs to it."""
Prepare = Callable[[Image.Image], NDArray[Any]]


@dataclass(frozen=True)
class ImageSample:
    """The first ``count`` images of ``subset`` that can be read, in a random order that is always the same.

    ``origin`` is the path of their source.
    """

    origin: str
    subset: Subset
    count: int

    def __str__(self) -> str:
        return f"{self.origin} ({self.subset.title})"

    def iterate_batches(
        self, prepare: Prepare, size: int, title: str
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Yield the indices (B,) of up to ``size`` images in the source, and the (B, ...) that ``prepare`` makes.

        Draws a progress bar named ``title``. Raises DataError if no image can be read.
        """
        images = islice(self._read_images(prepare), self.count)
        first = next(images, None)
        if first is None:
            raise DataError(f"calibration: none of the {len(self.subset)} images of {self} can be read")
        with create_progress(transient=True) as progress:
            task = progress.add_task(title, total=min(self.count, len(self.subset)))
            batch = [first, *islice(images, size - 1)]
            while batch:
                indices, inputs = zip(*batch, strict=True)
                yield np.array(indices), np.stack(inputs)
                progress.advance(task, len(batch))
                batch = list(islice(images, size))

    def _read_images(self, prepare: Prepare) -> Iterator[tuple[int, NDArray[Any]]]:
        for index in map(int, _shuffle_indices(self.subset)):
            try:
                image = _take_image(self.subset.source.load(index))
            except BrokenImage:
                continue  # the next image takes its place, so that the count is reached
            yield index, prepare(image)


def _take_image(sample: Any) -> Any:
    """Return the image of what a source gives: some give a mask or objects beside it, which photographs have alone."""
    if not isinstance(sample, tuple):
        return sample
    image = sample[0]
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


@dataclass(frozen=True)
class _Images:
    """The images of a source: those to calibrate on, and the others, if the source has any that stand apart."""

    origin: str
    train: Subset
    rest: Subset | None


def choose_images(
    config: CalibrationConfig, source: Source, pixels: PixelFormat = RGB_BYTES
) -> tuple[ImageSample, ImageSample]:
    """Return the images to calibrate on, and those to measure on.

    By default they are what the checkpoint was trained on, and what its training held out. If ``measure`` is the source
    that calibrates, by whatever path, it counts as left out: only images that calibrate nothing are taken. Images that
    the checkpoint was trained on are left out of what is measured, and counted. ``pixels`` are the bundle's. Raises
    ConfigError if neither the checkpoint nor ``config`` names images, and DataError if they are not there, too few, or
    all known to the network.
    """
    try:
        return _choose_images(config, source, pixels)
    except DataError as error:
        # sources are opened as those of a training, and name its key
        key = "measure" if config.measure and config.measure in str(error) else "source"
        raise DataError(str(error).replace("data.source", f"calibration.{key}")) from None


def _choose_images(config: CalibrationConfig, source: Source, pixels: PixelFormat) -> tuple[ImageSample, ImageSample]:
    training = _read_training(source)
    if config.source is None:
        images = _open_training_images(source, pixels)
    else:
        images = _open_images(config.source, pixels)
    held_out = False
    if training is not None and identify_source(images.train.source, _THREADS) == training.train:
        if config.source is not None and training.val == training.train:
            # training held out a fold of this very source: the same fold is left to measure on
            images = _open_training_images(source, pixels, config.source)
        held_out = images.rest is not None and identify_source(images.rest.source, _THREADS) == training.val
    measure = config.measure
    if measure is not None and _holds_images_of(measure, images.train, pixels):
        measure = None
    if images.rest is None:
        images = _draw_images(images, config.images, to_measure=measure is None)
    calibration = images.train
    assert images.rest is not None
    measured = images.rest
    origin = images.origin
    if measure is not None:
        other = _open_images(measure, pixels)
        measured = other.rest or other.train
        origin = measure
    # what training held out cannot hold images that it saw, so only then there is nothing to compare
    if measure is not None or not held_out:
        measured = _leave_out_used(measured, origin, calibration, config.images, training, source)
    return (
        ImageSample(images.origin, calibration, config.images),
        ImageSample(origin, measured, config.measure_images),
    )


def _draw_images(images: _Images, count: int, to_measure: bool) -> _Images:
    """Draw ``count`` images to calibrate on, and leave the others; DataError if none is left ``to_measure`` on."""
    order = _shuffle_indices(images.train)
    if to_measure and len(order) <= count:
        raise DataError(
            f"calibration.images {count}: leaves none of the {len(order)} images of {images.origin} to "
            "measure on; take fewer, or name others with calibration.measure"
        )
    source = images.train.source
    return _Images(images.origin, Subset(source, order[:count], "drawn"), Subset(source, order[count:], "the others"))


def _holds_images_of(origin: str, subset: Subset, pixels: PixelFormat) -> bool:
    """Return whether ``origin`` names the source of ``subset``, by whatever path."""
    named = _open_images(origin, pixels).train.source
    return identify_source(named, _THREADS) == identify_source(subset.source, _THREADS)


def _leave_out_used(
    subset: Subset, origin: str, calibration: Subset, count: int, training: TrainingData | None, source: Source
) -> Subset:
    """Return ``subset`` without images that the checkpoint was trained on, or that calibrate: the first ``count``."""
    if training is not None:
        subset = leave_out_seen(subset, training.all_seen, f"{source.checkpoint} was trained on", origin, _THREADS)
    used = hash_training_images(calibration.source, _shuffle_indices(calibration)[:count], _THREADS)
    return leave_out_seen(subset, used, "calibration takes", origin, _THREADS)


def _read_training(source: Source) -> TrainingData | None:
    """Return what the exported checkpoint knows of its images; None if it is no checkpoint of ours, or an old one."""
    if source.kind in ("file", "timm"):
        return None
    return read_training_data(open_checkpoint(source.checkpoint))


def _open_training_images(source: Source, pixels: PixelFormat, origin: str | None = None) -> _Images:
    """Return the images that a checkpoint was trained on, and those that its training held out.

    ``origin`` is the path of its images now, if they have moved.
    """
    if source.kind in ("file", "timm"):
        raise ConfigError(
            f"--int8, --float16: {source.checkpoint} does not say what it was trained on; "
            "--set calibration.source=FOLDER names images like those that it will see"
        )
    values = open_checkpoint(source.checkpoint).metadata["config"]
    data = values["data"]
    if origin is not None:
        data["source"] = origin
    entry = find_task_by_kind(source.kind)
    if entry is None or source.kind not in _KINDS_OF_ONE_IMAGE:
        table = {key: data[key] for key in ("images", "columns") if key in data}
        return _open_images(data["source"], pixels, data["layout"], data.get("classes"), table)
    if not pixels.is_rgb:
        # the task may have left them to the weights that it began with
        data |= {"channels": pixels.channels, "depth": pixels.depth, "range": pixels.range, "window": pixels.window}
    config = entry.config.model_validate(values)
    return _Images(data["source"], *entry.load_class().split_images(config))


def _open_images(
    origin: str,
    pixels: PixelFormat,
    layout: str = "auto",
    classes: Sequence[str] | None = None,
    table: Mapping[str, Any] | None = None,
) -> _Images:
    """Return the training images of a source, and its validation images if it has a part of them.

    ``table`` are the keys of the section ``data`` that say how to read a table.
    """
    values = {"source": origin, "layout": layout, "range": pixels.range, "classes": classes, **(table or {})}
    values |= {"channels": pixels.channels, "depth": pixels.depth, "window": pixels.window}
    config = DataConfig.model_validate(values)
    train = open_source(config, "train")
    if train.split != "train":
        return _Images(origin, Subset(train, None, "all"), None)
    return _Images(origin, Subset(train, None, "train"), Subset(open_source(config, "val"), None, "val"))


def _shuffle_indices(subset: Subset) -> NDArray[np.int64]:
    """Return the indices of a subset in a random order that is always the same."""
    return np.random.default_rng(0).permutation(subset.indices)
