"""Retrieval: one descriptor for an image, near to those of other images of the same thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Embedder, Processes
from ehm.config import RetrievalConfig, load_config
from ehm.console import console
from ehm.data import Batch, EvalTransform, Loader, Source, TrainTransform, open_source
from ehm.data.sampler import repeat_to_multiple
from ehm.data.subset import Subset, require_labels
from ehm.data.transforms import Transform
from ehm.storage.arrays import LearnerState
from ehm.tasks.evaluate import Evaluation, Stored
from ehm.tasks.held_out import leave_out_first_weights, leave_out_seen, remember_images
from ehm.tasks.images import collect, train_loader
from ehm.tasks.occurrences import count_labels
from ehm.tasks.retrieval.benchmarks import Answers
from ehm.tasks.retrieval.metrics import RetrievalReport, compare
from ehm.tasks.retrieval.search import Search, choose_benchmark, open_search, select_search, split_classes
from ehm.tasks.retrieval.transforms import EnlargeTransform, ShrinkTransform
from ehm.training.training_data import read_seen_images

__all__ = ["Retrieval", "parts", "reopen", "untrained"]


class Retrieval:
    """Implements :class:`ehm.training.supervised.Task`: training by ArcFace on images of classes."""

    kind = "embedder"

    def __init__(self, config: RetrievalConfig, backend: Backend, start: Path | None = None) -> None:
        data, self._processes = config.data, backend.processes
        self.config = config
        source = open_source(config.data, "train")
        kept, search = split_classes(config, source)
        self.train = _select_classes(source, kept, config)
        self.classes = tuple(source.classes[number] for number in kept.tolist())
        self.data = remember_images(config, self.train, search.images, self.classes, start, self._processes)
        new = leave_out_first_weights(search.images, self.data, config, self._processes, config.benchmark)
        self._search = search.restrict(new)
        self.val = self._search.part
        self.class_counts = count_labels(self.train, data, self.classes)
        self._numbers = np.full(len(source.classes), -1)
        self._numbers[kept] = np.arange(len(kept))
        # a resumed run needs nothing but its checkpoint
        model = config.model if start is None else config.model.model_copy(update={"init": str(start)})
        self.learner: Embedder = backend.create_embedder(config.model_copy(update={"model": model}), len(self.classes))
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
        """See :attr:`ehm.training.supervised.Task.stored`."""
        return self.config.model_dump(mode="json")

    @property
    def broken(self) -> Mapping[str, str]:
        """See :attr:`ehm.training.supervised.Task.broken`."""
        return self.loader.unreadable | self._val_loader.unreadable

    def step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.training.supervised.Task.step`."""
        assert batch.labels is not None
        return self.learner.train_step(batch.images, self._numbers[batch.labels], lr, self.config.optim.weight_decay)

    def measure(self) -> RetrievalReport:
        """See :meth:`ehm.training.supervised.Task.measure`."""
        return _measure(self.learner, self._search, self._val_loader, "", self._processes)

    def close(self) -> None:
        """See :meth:`ehm.training.supervised.Task.close`."""
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
    settings = settings.model_copy(update={"benchmark": given.benchmark})
    is_given = config is not None or any(override.startswith("benchmark=") for override in overrides)
    benchmark = choose_benchmark(stored, settings, is_given, backend.processes)
    settings = settings.model_copy(update={"benchmark": benchmark})
    search = select_search(stored, settings, backend.processes)
    embedder = backend.create_embedder(settings, len(stored.meta["classes"]))
    embedder.load(LearnerState(stored.arrays, {}))
    return _evaluate(embedder, search, settings, backend)


def untrained(
    init: str, backend: Backend, config: str | Path | None, overrides: Sequence[str]
) -> Evaluation[RetrievalReport]:
    """An encoder as it is: the generalised mean of its patch tokens, without whitening."""
    settings = load_config(RetrievalConfig, config, overrides)
    model = settings.model.model_copy(update={"init": init})
    settings = settings.model_copy(update={"model": model, "dim": None})
    search = open_search(settings)
    source = settings.benchmark or settings.data.source
    threads, seen_by = settings.data.workers, f"{init} was trained on"
    new = leave_out_seen(search.images, read_seen_images(init), seen_by, source, threads, backend.processes)
    embedder = backend.create_embedder(settings, 0)
    for note in embedder.notes:
        console.print(f"  {note}")
    return _evaluate(embedder, search.restrict(new), settings, backend)


def parts(config: RetrievalConfig) -> tuple[Subset, Subset]:
    """The images that are trained on, and those that are measured on; raises as the training does."""
    source = open_source(config.data, "train")
    kept, search = split_classes(config, source)
    return _select_classes(source, kept, config), search.images


def _select_classes(source: Source, classes: NDArray[np.int64], config: RetrievalConfig) -> Subset:
    labels = require_labels(source, config.data.source)
    return Subset(source, np.flatnonzero(np.isin(labels, classes)), f"{len(classes):,} classes")


def _evaluate(
    embedder: Embedder, search: Search, settings: RetrievalConfig, backend: Backend
) -> Evaluation[RetrievalReport]:
    transform = EvalTransform.from_spec(embedder.image_size, embedder.inputs)
    loader = _loader(search, transform, settings, backend.processes)

    def measure() -> RetrievalReport:
        with loader:
            return _measure(embedder, search, loader, "evaluate", backend.processes)

    return Evaluation(settings.benchmark or settings.data.source, search.part, measure, loader.unreadable)


def _loader(search: Search, transform: EvalTransform, config: RetrievalConfig, processes: Processes) -> Loader:
    size = processes.size
    indices = search.part.indices
    if config.longest is not None:
        # one image at a time, as they differ in size
        indices = repeat_to_multiple(indices, size)
        batch_size = size
        image_transform: Transform = ShrinkTransform(config.longest)
    else:
        largest = max(config.scales)
        height, width = transform.image_size
        image_transform = EnlargeTransform(transform, (round(height * largest), round(width * largest)))
        batch_size = max(1, min(64, config.optim.batch_size // config.optim.accumulate // size)) * size
    return Loader(
        search.part.source,
        image_transform,
        batch_size=batch_size,
        seed=0,
        shuffle=False,
        drop_last=False,
        workers=config.data.workers,
        strict=config.data.strict,
        subset=indices,
        rank=processes.rank,
        world_size=size,
    )


def _measure(embedder: Embedder, search: Search, loader: Loader, title: str, processes: Processes) -> RetrievalReport:
    """Describe all images once and rank; those that cannot be read are neither sought nor searched nor missed."""

    def describe(images: NDArray[np.uint8] | tuple[NDArray[np.uint8], ...]) -> NDArray[np.float32]:
        return embedder.compute_descriptors(np.stack(images) if isinstance(images, tuple) else images)

    numbers, rows = collect(describe, loader, title, processes)
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
