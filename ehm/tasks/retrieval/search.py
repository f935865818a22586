"""What retrieval searches for, and among which images: a benchmark, classes that are held out, or all of a source.

q is the number of queries, m that of images to search, n that of all images of a source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Processes
from ehm.config import RetrievalConfig
from ehm.data import Source, Split, open_source
from ehm.data.subset import Subset, require_labels
from ehm.errors import ConfigError, DataError
from ehm.tasks.evaluate import Stored
from ehm.tasks.held_out import holds_training_images, leave_out_trained, select_part
from ehm.tasks.retrieval.benchmarks import Answers, by_class, open_benchmark

__all__ = ["NumberedSource", "Search", "choose_benchmark", "open_search", "select_search", "split_classes"]


@dataclass(frozen=True)
class Search:
    """Images of ``part`` to search for (q,) and among (m,), both numbers of its source, and what is to be found.

    ``revisited`` says whether the answers tell easy from hard.
    """

    part: Subset
    queries: NDArray[np.int64]
    database: NDArray[np.int64]
    answers: tuple[Answers, ...]
    revisited: bool

    @property
    def images(self) -> Subset:
        """Return its part of the source as it was opened, whose images are not numbered yet."""
        assert isinstance(self.part.source, NumberedSource)
        return replace(self.part, source=self.part.source.source)

    def restrict(self, images: Subset) -> Search:
        """Return the search among ``images`` alone: others are neither sought nor found nor missed.

        Raises DataError if nothing is left to find.
        """
        if len(images) == len(self.part):
            return self
        kept = np.zeros(len(self.part.source), bool)
        kept[images.indices] = True
        there = kept[self.database]
        for query, answer in zip(self.queries.tolist(), self.answers, strict=True):
            if kept[query] and (there[answer.easy].any() or there[answer.hard].any()):
                return replace(self, part=replace(images, source=self.part.source))
        raise DataError(f"data.source: of {images.title} no two images belong together; there is nothing to find")


def open_search(config: RetrievalConfig) -> Search:
    """Open the benchmark; or the validation images, or all if there are no parts, each sought among the others."""
    if config.benchmark is not None:
        return _open_benchmark(config.benchmark, config)
    source = open_source(config.data, "train")
    if source.split == "train":
        source = open_source(config.data, "val")
    return _search_among(Subset(source, None, source.split), config)


def split_classes(config: RetrievalConfig, source: Source) -> tuple[NDArray[np.int64], Search]:
    """Return the classes of ``source`` to train on and the search to measure on.

    ``fold`` of ``folds`` parts of the classes is held out, always the same, unless there is a benchmark or a
    validation part.
    """
    labels = require_labels(source, config.data.source)
    classes = np.arange(len(source.classes))
    if config.benchmark is not None or source.split == "train":
        return classes, open_search(config)
    if len(classes) < 2 * config.folds:
        raise ConfigError(
            f"folds {config.folds}: {len(classes)} classes of {config.data.source} cannot be parted into as many of "
            "two classes at least; set benchmark to measure on other images"
        )
    held_out = np.random.default_rng(0).permutation(len(classes)) % config.folds == config.fold
    title = f"{held_out.sum():,} other classes, fold {config.fold} of {config.folds}"
    part = Subset(source, np.flatnonzero(held_out[labels]), title)
    return classes[~held_out], _search_among(part, config)


def choose_benchmark(stored: Stored, settings: RetrievalConfig, is_given: bool, processes: Processes) -> str | None:
    """Return the benchmark to measure a checkpoint on, or None for ``data.source`` of ``settings``.

    The one of the training counts as well as one that ``is_given`` now, unless other images are given now.
    """
    if settings.benchmark is None or is_given:
        return settings.benchmark
    if settings.data.source == stored.meta["config"]["data"]["source"]:
        return settings.benchmark  # the images of the training need not be there
    source = open_source(settings.data, "train")
    return settings.benchmark if holds_training_images(stored, settings, source, processes) else None


def select_search(stored: Stored, settings: RetrievalConfig, processes: Processes) -> Search:
    """Return the search that a checkpoint is measured by, without images that it was trained on."""
    if settings.benchmark is not None:
        search = _open_benchmark(settings.benchmark, settings)
        threads = settings.data.workers
        return search.restrict(leave_out_trained(search.images, stored, settings.benchmark, threads, processes))
    source = open_source(settings.data, "train")

    def hold_out() -> Subset:
        return split_classes(settings, source)[1].images

    def open_val() -> Source:
        return open_source(settings.data, "val")

    return _search_among(select_part(stored, settings, source, hold_out, open_val, processes), settings)


def _open_benchmark(place: str, config: RetrievalConfig) -> Search:
    found = open_benchmark(place)
    found = replace(found, source=replace(found.source, value_range=config.data.range))
    title = f"{len(found.queries):,} queries, {len(found.database):,} images to search"
    part = Subset(NumberedSource(found.source), None, title)
    return Search(part, found.queries, found.database, found.answers, found.revisited)


def _search_among(part: Subset, config: RetrievalConfig) -> Search:
    """Return the search for every image of ``part`` among its others, by their classes."""
    queries, database, answers = by_class(require_labels(part.source, config.data.source), part.indices)
    if not any(len(answer.easy) for answer in answers):
        raise DataError("data.source: no class has two images to measure on; there is nothing to find")
    numbered = replace(part, source=NumberedSource(part.source))
    return Search(numbered, queries, database, answers, revisited=False)


@dataclass(frozen=True)
class NumberedSource:
    """A source whose labels are the numbers of its images."""

    source: Source
    classes: tuple[str, ...] = ()
    split: Split = "all"

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return the numbers (n,)."""
        return np.arange(len(self.source))

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what there is to say of the source."""
        return self.source.notes

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> Any:
        """Return the image, as the source gives it."""
        return self.source.load(index)

    def name(self, index: int) -> str:
        """Return where the image lies."""
        return self.source.name(index)
