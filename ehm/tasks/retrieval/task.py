"""Retrieval: an image gets one descriptor, which is close to those of other images of the same object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Embedder, Processes
from ehm.config import RetrievalConfig, load_config
from ehm.config.inputs import describe_inputs
from ehm.console import console
from ehm.data import Batch, EvalTransform, Loader, Source, Split, TrainTransform, open_source
from ehm.data.sampler import repeat_to_multiple
from ehm.data.subset import Subset, require_labels
from ehm.models.opening import take_weights
from ehm.storage.checkpoint import Checkpoint
from ehm.tasks.base import Evaluation, Task, load_learner, merge_config
from ehm.tasks.classes import count_labels
from ehm.tasks.held_out import leave_out_seen
from ehm.tasks.predictions import collect_predictions
from ehm.tasks.retrieval.answers import Answers
from ehm.tasks.retrieval.metrics import RetrievalReport, report_retrieval
from ehm.tasks.retrieval.search import (
    Search,
    choose_benchmark,
    open_search,
    search_benchmark,
    search_classes,
    split_classes,
)
from ehm.tasks.retrieval.transforms import EnlargeTransform, ShrinkTransform
from ehm.training.loaders import make_eval_loader, make_single_image_loader, make_train_loader
from ehm.training.training_data import read_seen_images

__all__ = ["Retrieval"]

_MOST_AT_ONCE = 64
"""Images that are described at once, at most: those of the largest scale take much memory."""


class Retrieval(Task[RetrievalConfig, RetrievalReport]):
    """Training by ArcFace on images of classes."""

    measured_keys = ("scales", "longest")

    learner: Embedder

    def __init__(self, config: RetrievalConfig, backend: Backend, start: Checkpoint | None = None) -> None:
        source = self.open_source(config, "train")
        train_classes, search = split_classes(config, source)
        train = _select_classes(source, train_classes, config)
        classes = tuple(source.classes[number] for number in train_classes.tolist())
        super().__init__(config, backend, train, search.images, start, classes=classes, val_name=config.benchmark)
        search = search.restrict(self.val)
        self.val = search.subset
        self.class_counts = count_labels(train, config.data, classes)
        # from the number of a class in the source to its number in training, -1 for held-out classes
        self._class_numbers = np.full(len(source.classes), -1)
        self._class_numbers[train_classes] = np.arange(len(train_classes))
        self.learner = backend.create_task_learner(self.learner_config, len(classes), self.take_first_weights())
        self.headline = f"Training a descriptor by ArcFace on {config.model.init}"
        transform = TrainTransform(
            self.learner.image_size,
            config.data.crop_scale,
            config.data.flip,
            config.data.color_jitter,
            interpolation=self.learner.inputs.interpolation,
        )
        self.loader = make_train_loader(source, transform, config, self.processes, subset=train.selected)
        self.evaluation = EmbedderEvaluation(self.learner, search, config, backend)

    def train_step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """Take an optimiser step on images and their classes."""
        assert batch.labels is not None
        numbers = self._class_numbers[batch.labels]
        return self.learner.train_step(batch.images, numbers, lr, self.config.optim.weight_decay)

    @classmethod
    def open_source(cls, config: RetrievalConfig, split: Split) -> Source:
        """Open images of classes."""
        return open_source(config.data, split)

    @classmethod
    def divide_source(cls, config: RetrievalConfig, source: Source) -> tuple[Subset[Source], Subset[Source]]:
        """Return the images of the classes to train on, and those of the search that is measured."""
        train_classes, search = split_classes(config, source)
        return _select_classes(source, train_classes, config), search.images

    @classmethod
    def open_evaluation(
        cls, checkpoint: Checkpoint, backend: Backend, config: str | Path | None, overrides: Sequence[str]
    ) -> EmbedderEvaluation:
        """Prepare to measure the descriptor of a checkpoint on a benchmark or on other images.

        If ``data.source`` is not the source of the training, each of its images is a query to all others.
        """
        given = load_config(RetrievalConfig, config or checkpoint.metadata["config"], overrides)
        settings = merge_config(RetrievalConfig, checkpoint, config, overrides, cls.measured_keys)
        settings = settings.model_copy(update={"benchmark": given.benchmark})
        # given by the user, and not only stored in the checkpoint
        is_given = config is not None or any(override.startswith("benchmark=") for override in overrides)
        benchmark = choose_benchmark(checkpoint, settings, is_given, backend.processes)
        settings = settings.model_copy(update={"benchmark": benchmark})
        if benchmark is None:
            subset = cls.select_subset(checkpoint, settings, backend.processes)
            search = search_classes(subset, settings)
        else:
            search = search_benchmark(benchmark, checkpoint, settings, backend.processes)
        embedder = backend.create_task_learner(settings, len(checkpoint.metadata["classes"]), take_weights(checkpoint))
        load_learner(embedder, checkpoint)
        return EmbedderEvaluation(embedder, search, settings, backend)

    @classmethod
    def open_untrained(
        cls, init: str, backend: Backend, config: str | Path | None, overrides: Sequence[str]
    ) -> EmbedderEvaluation:
        """Prepare to measure an encoder without training: its descriptor is the generalised mean of patch tokens."""
        settings = load_config(RetrievalConfig, config, overrides)
        model = settings.model.model_copy(update={"init": init})
        # no dim, because the projection to it (whitening) would be a random one
        settings = settings.model_copy(update={"model": model, "dim": None})
        search = open_search(settings)
        new = leave_out_seen(
            search.images,
            read_seen_images(init),
            f"{init} was trained on",
            settings.benchmark or settings.data.source,
            settings.data.workers,
            backend.processes,
        )
        embedder = backend.create_task_learner(settings, 0)
        for note in (*embedder.notes, describe_inputs(embedder.inputs)):
            console.print(f"  {note}")
        return EmbedderEvaluation(embedder, search.restrict(new), settings, backend)


class EmbedderEvaluation(Evaluation[RetrievalReport]):
    """Measures an embedder: computes the descriptors of all images once, and ranks the database for each query."""

    def __init__(self, embedder: Embedder, search: Search, config: RetrievalConfig, backend: Backend) -> None:
        transform = EvalTransform.from_spec(embedder.image_size, embedder.inputs)
        loader = _make_loader(search, transform, config, backend.processes)
        super().__init__(config.benchmark or config.data.source, search.subset, loader, backend.processes)
        self._embedder = embedder
        self._search = search

    def measure(self, title: str = "") -> RetrievalReport:
        """Rank the database for each query, without the queries, database images and answers that cannot be read."""
        search = self._search
        numbers, rows = collect_predictions(self._describe, self.loader, title, self.processes)
        row_of = np.full(len(search.subset.source), -1)
        row_of[numbers] = np.arange(len(numbers))
        is_there = row_of[search.database] >= 0
        # answers are positions in the database, which get smaller if images before them are left out
        new_position = np.where(is_there, np.cumsum(is_there) - 1, -1)

        def move_positions(positions: NDArray[np.int64]) -> NDArray[np.int64]:
            moved: NDArray[np.int64] = new_position[positions]
            return moved[moved >= 0]

        query_rows = row_of[search.queries]
        answers = []
        for answer, row in zip(search.answers, query_rows, strict=True):
            if row >= 0:
                kinds = (answer.easy, answer.hard, answer.junk)
                answers.append(Answers(*map(move_positions, kinds)))
        queries = rows[query_rows[query_rows >= 0]]
        database = rows[row_of[search.database[is_there]]]
        return report_retrieval(queries, database, answers, search.revisited)

    def _describe(self, images: Any) -> NDArray[np.float32]:
        if isinstance(images, tuple):  # make_single_image_loader does not stack images
            images = np.stack(images)
        return self._embedder.compute_descriptors(images)


def _select_classes(source: Source, classes: NDArray[np.int64], config: RetrievalConfig) -> Subset[Source]:
    labels = require_labels(source, config.data.source)
    return Subset(source, np.flatnonzero(np.isin(labels, classes)), f"{len(classes):,} classes")


def _make_loader(search: Search, transform: EvalTransform, config: RetrievalConfig, processes: Processes) -> Loader:
    source = search.subset.source
    if config.longest is None:
        largest = max(config.scales)
        height, width = transform.image_size
        enlarged = EnlargeTransform(transform, (round(height * largest), round(width * largest)))
        subset = search.subset.selected
        return make_eval_loader(source, enlarged, config, processes, most=_MOST_AT_ONCE, subset=subset)
    whole_rounds = repeat_to_multiple(search.subset.indices, processes.size)
    return make_single_image_loader(source, ShrinkTransform(config.longest), config, processes, subset=whole_rounds)
