"""Retrieval: one descriptor for an image, near to those of other images of the same thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.backends.base import Backend, Embedder, LearnerState, Processes
from ehm.config import RetrievalConfig, load_config
from ehm.console import console
from ehm.data import Batch, EvalTransform, Loader, Source, Split, TrainTransform, open_source
from ehm.data.benchmarks import Answers, by_class, open_benchmark
from ehm.data.transforms import RESAMPLING
from ehm.data.whole import Shrink, WholeImages
from ehm.errors import ConfigError, DataError
from ehm.tasks.evaluate import Evaluation, Stored
from ehm.tasks.labelled import Part, collect, labels_of, train_loader
from ehm.tasks.occurrences import count_labels
from ehm.tasks.ranking import RetrievalReport, compare

__all__ = ["Retrieval", "parts", "reopen", "untrained"]


@dataclass(frozen=True)
class Search:
    """Images of ``part`` that are sought (q,) and searched (m,), both numbers of its source, and what is to be found.

    ``revisited`` says whether the answers tell easy from hard.
    """

    part: Part
    queries: NDArray[np.int64]
    database: NDArray[np.int64]
    answers: tuple[Answers, ...]
    revisited: bool


class Retrieval:
    """Implements :class:`ehm.tasks.loop.Task`: training by ArcFace on images of classes."""

    kind = "embedder"

    def __init__(self, config: RetrievalConfig, backend: Backend, start: Path | None = None) -> None:
        data, self._processes = config.data, backend.processes
        self.config = config
        source, labels, kept, self._search = _open(config)
        self.train = _trained_on(source, labels, kept)
        self.val = self._search.part
        self.classes = tuple(source.classes[number] for number in kept.tolist())
        self.class_counts = count_labels(self.train, data, self.classes)
        self._numbers = np.full(len(source.classes), -1)
        self._numbers[kept] = np.arange(len(kept))
        # a resumed run needs nothing but its checkpoint
        model = config.model if start is None else config.model.model_copy(update={"init": str(start)})
        self.learner: Embedder = backend.embedder(config.model_copy(update={"model": model}), len(self.classes))
        self.headline = f"Training a descriptor by ArcFace on {config.model.init}"
        transform = TrainTransform(
            self.learner.image_size,
            data.crop_scale,
            data.flip,
            data.color_jitter,
            interpolation=self.learner.inputs.interpolation,
        )
        self.loader = train_loader(self.train, transform, config, self._processes)
        measured = EvalTransform.from_spec(self.learner.image_size, self.learner.inputs)
        self._val_loader = _loader(self._search, measured, config, self._processes)

    @property
    def stored(self) -> dict[str, Any]:
        """See :attr:`ehm.tasks.loop.Task.stored`."""
        return self.config.model_dump(mode="json")

    @property
    def broken(self) -> Mapping[str, str]:
        """See :attr:`ehm.tasks.loop.Task.broken`."""
        return self.loader.broken | self._val_loader.broken

    def step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.tasks.loop.Task.step`."""
        assert batch.labels is not None
        return self.learner.train_step(batch.images, self._numbers[batch.labels], lr, self.config.optim.weight_decay)

    def measure(self) -> RetrievalReport:
        """See :meth:`ehm.tasks.loop.Task.measure`."""
        return _measure(self.learner, self._search, self._val_loader, "", self._processes)

    def close(self) -> None:
        """See :meth:`ehm.tasks.loop.Task.close`."""
        self.loader.close()
        self._val_loader.close()


def reopen(
    stored: Stored, backend: Backend, config: str | Path | None, overrides: Sequence[str]
) -> Evaluation[RetrievalReport]:
    """The descriptor of a checkpoint, on the benchmark or the images that ``config`` and ``overrides`` say.

    Images of ``data.source`` that are not those of the training are all sought among each other.
    """
    given = load_config(RetrievalConfig, config if config is not None else stored.meta["config"], overrides)
    settings = stored.settings(RetrievalConfig, config, overrides, measuring=("scales", "longest"))
    trained_on, benchmark = stored.meta["config"]["data"]["source"], given.benchmark
    said = config is not None or any(override.startswith("benchmark=") for override in overrides)
    if given.data.source != trained_on and not said:
        benchmark = None  # the other images are what to measure on
    settings = settings.model_copy(update={"benchmark": benchmark})
    embedder = backend.embedder(settings, len(stored.meta["classes"]))
    embedder.load(LearnerState(stored.arrays, {}))
    return _evaluation(embedder, settings, trained_on, backend)


def untrained(
    init: str, backend: Backend, config: str | Path | None, overrides: Sequence[str]
) -> Evaluation[RetrievalReport]:
    """An encoder as it is: the generalised mean of its patch tokens, without whitening."""
    settings = load_config(RetrievalConfig, config, overrides)
    model = settings.model.model_copy(update={"init": init})
    settings = settings.model_copy(update={"model": model, "dim": None})
    embedder = backend.embedder(settings, 0)
    for note in embedder.notes:
        console.print(f"  {note}")
    return _evaluation(embedder, settings, None, backend)


def parts(config: RetrievalConfig) -> tuple[Part, Part]:
    """The images that are trained on, and those that are measured on; raises as the training does."""
    source, labels, kept, search = _open(config)
    numbered, part = search.part.source, search.part
    assert isinstance(numbered, _Numbered)
    return _trained_on(source, labels, kept), Part(numbered.source, part.subset, part.title)


def _trained_on(source: Source, labels: NDArray[np.int64], kept: NDArray[np.int64]) -> Part:
    return Part(source, np.flatnonzero(np.isin(labels, kept)), f"{len(kept):,} classes")


def _evaluation(
    embedder: Embedder, settings: RetrievalConfig, trained_on: str | None, backend: Backend
) -> Evaluation[RetrievalReport]:
    search = _open(settings)[3] if settings.data.source == trained_on else _all(settings)
    transform = EvalTransform.from_spec(embedder.image_size, embedder.inputs)
    loader = _loader(search, transform, settings, backend.processes)

    def measure() -> RetrievalReport:
        with loader:
            return _measure(embedder, search, loader, "evaluate", backend.processes)

    return Evaluation(settings.benchmark or settings.data.source, search.part, measure, loader.broken)


def _open(config: RetrievalConfig) -> tuple[Source, NDArray[np.int64], NDArray[np.int64], Search]:
    """What to train on, its labels (n,) and the classes of it that are, and what to measure on.

    ``fold`` of ``folds`` parts of the classes is held out, always the same, unless there is a benchmark or a
    validation part.
    """
    source = open_source(config.data, "train")
    labels = labels_of(source, config.data.source)
    classes = np.arange(len(source.classes))
    if config.benchmark is not None or source.split == "train":
        return source, labels, classes, _all(config)
    if len(classes) < 2 * config.folds:
        raise ConfigError(
            f"folds {config.folds}: {len(classes)} classes of {config.data.source} cannot be parted into as many of "
            "two classes at least; set benchmark to measure on other images"
        )
    held_out = np.random.default_rng(0).permutation(len(classes)) % config.folds == config.fold
    numbers = np.flatnonzero(held_out[labels])
    title = f"{held_out.sum():,} other classes, fold {config.fold} of {config.folds}"
    return source, labels, classes[~held_out], _among(source, labels, numbers, title)


def _all(config: RetrievalConfig) -> Search:
    """The benchmark; or the validation images, or all where there are no parts, each sought among the others."""
    if config.benchmark is not None:
        found = open_benchmark(config.benchmark)
        title = f"{len(found.queries):,} queries, {len(found.database):,} images to search"
        part = Part(_Numbered(found.source), None, title)
        return Search(part, found.queries, found.database, found.answers, found.revisited)
    source = open_source(config.data, "train")
    if source.split == "train":
        source = open_source(config.data, "val")
    return _among(source, labels_of(source, config.data.source), np.arange(len(source)), source.split)


def _among(source: Source, labels: NDArray[np.int64], numbers: NDArray[np.int64], title: str) -> Search:
    queries, database, answers = by_class(labels, numbers)
    if not any(len(answer.easy) for answer in answers):
        raise DataError("data.source: no class has two images to measure on; there is nothing to find")
    return Search(Part(_Numbered(source), numbers, title), queries, database, answers, revisited=False)


def _loader(
    search: Search, transform: EvalTransform, config: RetrievalConfig, processes: Processes
) -> Loader | WholeImages:
    if config.longest is not None:
        return WholeImages(
            search.part.source,
            Shrink(config.longest),
            threads=config.data.workers,
            strict=config.data.strict,
            subset=search.part.subset,
            rank=processes.rank,
            world_size=processes.size,
        )
    largest = max(config.scales)
    height, width = transform.image_size
    return Loader(
        search.part.source,
        _Enlarged(transform, (round(height * largest), round(width * largest))),
        batch_size=max(1, min(64, config.optim.batch_size // config.optim.accumulate // processes.size))
        * processes.size,
        seed=0,
        shuffle=False,
        drop_last=False,
        workers=config.data.workers,
        strict=config.data.strict,
        subset=search.part.subset,
        rank=processes.rank,
        world_size=processes.size,
    )


def _measure(
    embedder: Embedder, search: Search, loader: Loader | WholeImages, title: str, processes: Processes
) -> RetrievalReport:
    """Describe all images once and rank; those that cannot be read are neither sought nor searched nor missed."""
    numbers, rows = collect(embedder.descriptors, loader, title, processes)
    place = np.full(len(search.part.source), -1)
    place[numbers] = np.arange(len(numbers))
    there = place[search.database] >= 0
    moved = np.where(there, np.cumsum(there) - 1, -1)

    def kept(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = moved[positions]
        return found[found >= 0]

    sought = place[search.queries]
    answers = [
        Answers(kept(answer.easy), kept(answer.hard), kept(answer.junk))
        for answer, query in zip(search.answers, sought, strict=True)
        if query >= 0
    ]
    return compare(rows[sought[sought >= 0]], rows[place[search.database[there]]], answers, search.revisited)


@dataclass(frozen=True)
class _Numbered:
    """A source whose labels are the numbers of its images."""

    source: Source
    classes: tuple[str, ...] = ()
    split: Split = "all"

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.arange(len(self.source))

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> Any:
        return self.source.load(index)

    def name(self, index: int) -> str:
        return self.source.name(index)


@dataclass(frozen=True)
class _Enlarged:
    """What ``transform`` shows of an image, at another size (height, width): what all scales are made of."""

    transform: EvalTransform
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, 3)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        if self.size == self.transform.image_size:
            return self.transform(image, rng)
        return np.asarray(self._enlarge(image))

    def _enlarge(self, image: Image.Image) -> Image.Image:
        """Resize the region that ``transform`` shows straight from the image; beyond the image lies its colour."""
        height, width = self.transform.image_size
        (resized_w, resized_h), (left, top) = self.transform.layout(*image.size)
        first_x, first_y = max(left, 0), max(top, 0)
        last_x, last_y = min(left + width, resized_w), min(top + height, resized_h)
        x, y = image.width / resized_w, image.height / resized_h
        box = (first_x * x, first_y * y, min(last_x * x, image.width), min(last_y * y, image.height))
        across, down = self.size[1] / width, self.size[0] / height
        shown = max(1, round((last_x - first_x) * across)), max(1, round((last_y - first_y) * down))
        enlarged = image.resize(shown, RESAMPLING[self.transform.interpolation], box=box)
        if shown == (self.size[1], self.size[0]):
            return enlarged
        canvas = Image.new("RGB", (self.size[1], self.size[0]), self.transform.fill)
        canvas.paste(enlarged, (round((first_x - left) * across), round((first_y - top) * down)))
        return canvas
