"""Queries and a database for retrieval: of a benchmark, of held-out classes, or of all images of a source.

q is the number of queries, m the number of images in the database, and n that of all images of a source.
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
from ehm.storage.checkpoint import Checkpoint
from ehm.tasks.folds import describe_fold, draw_folds
from ehm.tasks.held_out import holds_training_images, leave_out_trained
from ehm.tasks.retrieval.answers import Answers, make_answers_by_class
from ehm.tasks.retrieval.benchmarks import open_benchmark

__all__ = [
    "NumberedSource",
    "Search",
    "choose_benchmark",
    "open_search",
    "search_benchmark",
    "search_classes",
    "split_classes",
]


@dataclass(frozen=True)
class NumberedSource:
    """A source whose labels are the indices of its images, so that a loader returns the index of each descriptor."""

    source: Source
    classes: tuple[str, ...] = ()
    split: Split = "all"

    @property
    def labels(self) -> NDArray[np.int64]:
        """The indices (n,)."""
        return np.arange(len(self.source))

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines to print about the source."""
        return self.source.notes

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> Any:
        """Return the image from the source."""
        return self.source.load(index)

    def name(self, index: int) -> str:
        """Return the path of the image."""
        return self.source.name(index)


@dataclass(frozen=True)
class Search:
    """The ``queries`` (q,) and the ``database`` (m,), indices of the source of ``subset``, and the right ``answers``.

    ``revisited`` is true if the answers are divided into easy and hard ones.
    """

    subset: Subset[NumberedSource]
    queries: NDArray[np.int64]
    database: NDArray[np.int64]
    answers: tuple[Answers, ...]
    revisited: bool

    @property
    def images(self) -> Subset[Source]:
        """The same images in the source as it was opened."""
        return Subset(self.subset.source.source, self.subset.selected, self.subset.title)

    def restrict(self, images: Subset[Source]) -> Search:
        """Return the search with ``images`` only; others are left out, as queries, database and answers.

        Raises DataError if no query has an image to find then.
        """
        if len(images) == len(self.subset):
            return self
        is_kept = np.zeros(len(self.subset.source), bool)
        is_kept[images.indices] = True
        is_there = is_kept[self.database]
        # one query with an image to find is enough for figures
        for query, answer in zip(self.queries.tolist(), self.answers, strict=True):
            if is_kept[query] and (is_there[answer.easy].any() or is_there[answer.hard].any()):
                return replace(self, subset=Subset(self.subset.source, images.selected, images.title))
        raise DataError(f"data.source: of {images.title} no two images belong together; there is nothing to find")


def open_search(config: RetrievalConfig) -> Search:
    """Open the benchmark of ``config``; without one, search the validation part, or all images if there are no parts.

    Each of these images is then a query to the others.
    """
    if config.benchmark is not None:
        return _open_benchmark(config.benchmark, config)
    source = open_source(config.data, "train")
    if source.split == "train":
        source = open_source(config.data, "val")
    return search_classes(Subset(source, None, source.split), config)


def split_classes(config: RetrievalConfig, source: Source) -> tuple[NDArray[np.int64], Search]:
    """Return the classes of ``source`` to train on, and the search to measure on.

    Unless there is a benchmark or a validation part, the classes are divided into ``folds`` parts, always in the same
    way, and the part ``fold`` is held out to measure on.
    """
    labels = require_labels(source, config.data.source)
    classes = np.arange(len(source.classes))
    if config.benchmark is not None or source.split == "train":
        return classes, open_search(config)
    # at least two classes have to be held out: with one, every image would be a right answer
    if len(classes) < 2 * config.folds:
        raise ConfigError(
            f"folds {config.folds}: {len(classes)} classes of {config.data.source} cannot be parted into as many of "
            "two classes at least; set benchmark to measure on other images"
        )
    # whole classes are held out, because a descriptor has to work for objects that it was not trained on
    is_held_out = draw_folds(len(classes), config) == config.fold
    title = f"{is_held_out.sum():,} other classes, {describe_fold(config)}"
    held_out = Subset(source, np.flatnonzero(is_held_out[labels]), title)
    return classes[~is_held_out], search_classes(held_out, config)


def choose_benchmark(
    checkpoint: Checkpoint, config: RetrievalConfig, is_given: bool, processes: Processes
) -> str | None:
    """Return the benchmark to measure a checkpoint on, or None for the images of ``config.data.source``.

    A benchmark that ``is_given`` by the user always counts. The benchmark of the training counts unless the user gives
    another ``data.source``.
    """
    if config.benchmark is None or is_given:
        return config.benchmark
    if config.data.source == checkpoint.metadata["config"]["data"]["source"]:
        return config.benchmark  # decided by the path, because the images of the training may be gone
    source = open_source(config.data, "train")
    if holds_training_images(checkpoint, config, source, processes):
        return config.benchmark
    return None


def search_benchmark(benchmark: str, checkpoint: Checkpoint, config: RetrievalConfig, processes: Processes) -> Search:
    """Open ``benchmark`` without the images that the checkpoint was trained on."""
    search = _open_benchmark(benchmark, config)
    new = leave_out_trained(search.images, checkpoint, benchmark, config.data.workers, processes)
    return search.restrict(new)


def search_classes(images: Subset[Source], config: RetrievalConfig) -> Search:
    """Return the search in which each of ``images`` is a query to the others, and should find those of its class."""
    labels = require_labels(images.source, config.data.source)
    queries, database, answers = make_answers_by_class(labels, images.indices)
    if not any(len(answer.easy) for answer in answers):
        raise DataError("data.source: no class has two images to measure on; there is nothing to find")
    numbered = Subset(NumberedSource(images.source), images.selected, images.title)
    return Search(numbered, queries, database, answers, revisited=False)


def _open_benchmark(path: str, config: RetrievalConfig) -> Search:
    benchmark = open_benchmark(path)
    source = replace(benchmark.source, value_range=config.data.range)
    title = f"{len(benchmark.queries):,} queries, {len(benchmark.database):,} images to search"
    images = Subset(NumberedSource(source), None, title)
    return Search(images, benchmark.queries, benchmark.database, benchmark.answers, benchmark.revisited)
