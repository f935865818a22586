"""Queries and a database for retrieval: a benchmark, classes that are held out, or all images of a source.

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
    """A source whose labels are the indices of its images, so that descriptors can be told apart."""

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
        """Return the image, as the source gives it."""
        return self.source.load(index)

    def name(self, index: int) -> str:
        """Return the path of the image."""
        return self.source.name(index)


@dataclass(frozen=True)
class Search:
    """Images of ``subset`` to search for (q,) and among (m,), both indices of its source, and what is to be found.

    ``revisited`` says whether the answers tell easy from hard.
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
        """Return the search among ``images`` alone: others are neither sought nor found nor missed.

        Raises DataError if nothing is left to find.
        """
        if len(images) == len(self.subset):
            return self
        is_kept = np.zeros(len(self.subset.source), bool)
        is_kept[images.indices] = True
        is_there = is_kept[self.database]
        # one query with an answer is enough: a search without any has no figures
        for query, answer in zip(self.queries.tolist(), self.answers, strict=True):
            if is_kept[query] and (is_there[answer.easy].any() or is_there[answer.hard].any()):
                return replace(self, subset=Subset(self.subset.source, images.selected, images.title))
        raise DataError(f"data.source: of {images.title} no two images belong together; there is nothing to find")


def open_search(config: RetrievalConfig) -> Search:
    """Open the benchmark; or the validation images, or all if there are no parts, each sought among the others."""
    if config.benchmark is not None:
        return _open_benchmark(config.benchmark, config)
    source = open_source(config.data, "train")
    if source.split == "train":
        source = open_source(config.data, "val")
    return search_classes(Subset(source, None, source.split), config)


def split_classes(config: RetrievalConfig, source: Source) -> tuple[NDArray[np.int64], Search]:
    """Return the classes of ``source`` to train on and the search to measure on.

    ``fold`` of ``folds`` parts of the classes is held out, always the same, unless there is a benchmark or a
    validation part.
    """
    labels = require_labels(source, config.data.source)
    classes = np.arange(len(source.classes))
    if config.benchmark is not None or source.split == "train":
        return classes, open_search(config)
    # with one class held out, every image would be an answer to every query
    if len(classes) < 2 * config.folds:
        raise ConfigError(
            f"folds {config.folds}: {len(classes)} classes of {config.data.source} cannot be parted into as many of "
            "two classes at least; set benchmark to measure on other images"
        )
    # whole classes are held out: a descriptor is to find things that it has never seen
    is_held_out = draw_folds(len(classes), config) == config.fold
    title = f"{is_held_out.sum():,} other classes, {describe_fold(config)}"
    held_out = Subset(source, np.flatnonzero(is_held_out[labels]), title)
    return classes[~is_held_out], search_classes(held_out, config)


def choose_benchmark(
    checkpoint: Checkpoint, config: RetrievalConfig, is_given: bool, processes: Processes
) -> str | None:
    """Return the benchmark to measure a checkpoint on, or None for the images of ``config.data.source``.

    The one of the training counts as well as one that ``is_given`` now, unless other images are given now.
    """
    if config.benchmark is None or is_given:
        return config.benchmark
    if config.data.source == checkpoint.metadata["config"]["data"]["source"]:
        return config.benchmark  # the images of the training need not be there
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
    """Return the search for every one of ``images`` among the others; those of its class are to be found."""
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
