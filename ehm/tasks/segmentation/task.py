"""Segmentation: every pixel has one of C labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ehm.backends.base import Backend, Processes, Segmenter
from ehm.config import SegmentationConfig
from ehm.console import console
from ehm.data import Batch
from ehm.data.segmentation import CropTransform, resize_to_scale
from ehm.data.sources.mask_counts import MaskCounts, explain_255
from ehm.data.sources.pairs import PairSource, check_pairs, open_pairs
from ehm.data.subset import Subset
from ehm.data.threads import in_threads
from ehm.errors import BrokenImage, ConfigError, DataError
from ehm.storage.arrays import LearnerState
from ehm.tasks.evaluate import Evaluation, Stored
from ehm.tasks.held_out import leave_out_first_weights, remember_images, select_part
from ehm.tasks.images import train_loader
from ehm.tasks.occurrences import describe_masks
from ehm.tasks.segmentation.metrics import SegmentationReport, count_pixels, overlap

__all__ = ["Segmentation", "reopen"]

_NAMED = 3
"""Wrong masks that a message names one by one."""
Read = tuple[NDArray[np.uint8], NDArray[np.uint8]] | BrokenImage


class Segmentation:
    """Implements :class:`ehm.training.supervised.Task`."""

    kind = "segmenter"

    def __init__(self, config: SegmentationConfig, backend: Backend, start: Path | None = None) -> None:
        data, self._processes = config.data, backend.processes
        self.config = config
        self.train, val = _split(config, open_pairs(config.data, "train"))
        self.classes = self.train.source.classes
        self.data = remember_images(config, self.train, val, self.classes, start, self._processes)
        self.val = leave_out_first_weights(val, self.data, config, self._processes)
        self.class_counts: tuple[str, ...] = ()
        if data.check and start is None:
            counts = [_check(part, config, self._processes) for part in (self.train, self.val)]
            if wrong := explain_255(counts[0].merge(counts[1:]), self.classes):
                raise DataError(f"data.source {data.source}: {wrong}")
            self.class_counts = describe_masks(self.train, counts[0], self.classes, data)
        # a resumed run needs nothing but its checkpoint
        model = config.model if start is None else config.model.model_copy(update={"init": str(start)})
        self.learner: Segmenter = backend.create_segmenter(
            config.model_copy(update={"model": model}), len(self.classes)
        )
        self.headline = f"Training UperNet on {config.model.init}"
        red, green, blue = (min(255, round(255 * value)) for value in self.learner.inputs.mean)
        transform = CropTransform(
            config.crop_size,
            data.scale,
            data.ratio,
            data.max_share,
            data.flip,
            data.photometric,
            (red, green, blue),
        )
        self.loader = train_loader(self.train, transform, config, self._processes)
        self._broken: dict[str, str] = {}

    @property
    def stored(self) -> dict[str, Any]:
        """See :attr:`ehm.training.supervised.Task.stored`."""
        return self.config.model_dump(mode="json")

    @property
    def broken(self) -> Mapping[str, str]:
        """See :attr:`ehm.training.supervised.Task.broken`."""
        return self.loader.unreadable | self._broken

    def step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.training.supervised.Task.step`."""
        images, labels = batch.images[..., :3], batch.images[..., 3]
        return self.learner.train_step(images, labels, lr, self.config.optim.weight_decay)

    def measure(self) -> SegmentationReport:
        """See :meth:`ehm.training.supervised.Task.measure`."""
        return _measure(self.learner, self.val, self.config, self.classes, self._processes, self._broken)

    def close(self) -> None:
        """See :meth:`ehm.training.supervised.Task.close`."""
        self.loader.close()


def reopen(
    stored: Stored, backend: Backend, config: str | Path | None, overrides: Sequence[str]
) -> Evaluation[SegmentationReport]:
    """The segmenter of a checkpoint, on the part of the images that ``config`` and ``overrides`` say.

    Raises DataError where the source has other classes.
    """
    settings = stored.settings(SegmentationConfig, config, overrides, measuring=("inference",))
    classes = tuple(stored.meta["classes"])
    source = open_pairs(settings.data, "train")
    part = select_part(
        stored,
        settings,
        source,
        lambda: _split(settings, source)[1],
        lambda: open_pairs(settings.data, "val"),
        backend.processes,
    )
    part = replace(part, source=_with_classes(_pairs(part), classes, settings.data.source))
    if settings.data.check:
        _check(part, settings, backend.processes)
    learner = backend.create_segmenter(settings, len(classes))
    learner.load(LearnerState(stored.arrays, {}))
    broken: dict[str, str] = {}

    def measure() -> SegmentationReport:
        return _measure(learner, part, settings, classes, backend.processes, broken, "evaluate")

    return Evaluation(settings.data.source, part, measure, broken)


def _split(config: SegmentationConfig, train: PairSource) -> tuple[Subset, Subset]:
    """What to train on and what to measure on: the source's own parts, or ``fold`` of ``folds`` held out."""
    if train.split == "train":
        val = _with_classes(open_pairs(config.data, "val"), train.classes, config.data.source)
        return Subset(train, None, "train"), Subset(val, None, "val")
    if config.folds > len(train):
        raise ConfigError(f"folds {config.folds}: there are only {len(train)} images")
    fold_of = np.random.default_rng(0).permutation(len(train)) % config.folds
    title = f"fold {config.fold} of {config.folds}"
    held_out = fold_of == config.fold
    return Subset(train, np.flatnonzero(~held_out), f"all but {title}"), Subset(train, np.flatnonzero(held_out), title)


def _pairs(part: Subset) -> PairSource:
    assert isinstance(part.source, PairSource)
    return part.source


def _numbers(part: Subset, processes: Processes) -> list[int]:
    """This process's share of the images."""
    share: list[int] = part.indices[processes.rank :: processes.size].tolist()
    return share


def _with_classes(source: PairSource, classes: tuple[str, ...], name: str) -> PairSource:
    """``source`` with ``classes``, which are its own, or more where nobody has named its own."""
    if source.classes == classes or (not source.named and len(source.classes) <= len(classes)):
        return replace(source, classes=classes)
    raise DataError(
        f"data.source {name}: its {len(source.classes)} classes ({', '.join(source.classes[:5])}, …) are not the "
        f"{len(classes)} that are trained ({', '.join(classes[:5])}, …)"
    )


def _check(part: Subset, config: SegmentationConfig, processes: Processes) -> MaskCounts:
    """Count what masks hold; DataError if they do not fit their images or the classes. All processes call this."""
    counts = MaskCounts()
    mine = check_pairs(_pairs(part), _numbers(part, processes), config.data.workers, counts)
    shares = processes.gather_values((mine, counts))
    wrong = [each for theirs, _ in shares for each in theirs]
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise DataError(f"data.source {config.data.source}: {'; '.join(wrong[:_NAMED])}{more}")
    return MaskCounts().merge([theirs for _, theirs in shares])


def _measure(
    learner: Segmenter,
    part: Subset,
    config: SegmentationConfig,
    classes: tuple[str, ...],
    processes: Processes,
    broken: dict[str, str],
    title: str = "",
) -> SegmentationReport:
    """Each image of ``part`` by itself, against its mask in its own size; files that cannot be read go to ``broken``.

    Every process takes a share. Draws a progress bar named ``title``.
    """
    source, numbers = _pairs(part), _numbers(part, processes)
    counts, images = np.zeros((len(classes), len(classes)), np.int64), 0
    reads = in_threads(partial(_read, source, config), numbers, config.data.workers)
    hidden = not (title and console.is_terminal)
    for number, read in zip(numbers, track(reads, title, len(numbers), console=console, disable=hidden), strict=True):
        if isinstance(read, BrokenImage):
            if config.data.strict:
                raise read
            name = source.name(number)
            broken[name] = str(read).removeprefix(f"{name}: ")
            continue
        image, labels = read
        counts += count_pixels(labels, learner.segment_image(image, (labels.shape[0], labels.shape[1])), len(classes))
        images += 1
    shares = processes.gather_values((counts, images))
    counts = np.sum([theirs for theirs, _ in shares], axis=0)
    if not counts.sum():
        raise DataError(f"data.source {config.data.source}: no pixel of {part.title} has a class to measure")
    return overlap(counts, classes, sum(number for _, number in shares))


def _read(source: PairSource, config: SegmentationConfig, number: int) -> Read:
    try:
        image, labels = source.load(number)
    except BrokenImage as error:
        return error
    return resize_to_scale(image, config.data.scale), labels
