"""Keep the images that a model is measured on apart from those that it was trained on.

Images are compared by their contents or names (:mod:`ehm.training.training_data`), so that it does not matter where
their files are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ehm.backends.base import ALONE, Processes
from ehm.config import TaskConfig
from ehm.console import console
from ehm.data import Source
from ehm.data.subset import Subset
from ehm.errors import ConfigError, DataError
from ehm.storage.checkpoint import Checkpoint
from ehm.training.resume import check_resumed_data
from ehm.training.training_data import (
    SeenImages,
    TrainingData,
    find_seen,
    hash_training_images,
    identify_training_data,
    read_seen_images,
    read_training_data,
    run_on_first,
)

__all__ = [
    "holds_training_images",
    "leave_out_first_weights",
    "leave_out_seen",
    "leave_out_trained",
    "remember_images",
    "select_subset",
]

S = TypeVar("S", bound=Source)


def remember_images(
    config: TaskConfig,
    train: Subset[Source],
    val: Subset[Source],
    classes: Sequence[str],
    start: Checkpoint | None,
    processes: Processes,
    unit: str = "images",
    labels: str = "labels",
) -> TrainingData:
    """Return the identities of the images of a run, which its checkpoints keep.

    Raises ConfigError if a run that is resumed from ``start`` has other images or ``classes`` than before; ``unit`` and
    ``labels`` are the words of the message for images and their labels. All processes call this.
    """
    threads = config.data.workers
    found = identify_training_data(train.source, val.source, threads, processes)
    if start is not None:
        stored = check_resumed_data(start, found, classes, config.data.source, unit, labels)
        if stored is not None:
            return stored
    else:
        _refuse_fold(config, train, val)
    # only read for a new run, because the model.init of a resumed run need not exist any more
    seen_before = read_seen_images(config.model.init) if start is None else {}
    seen: SeenImages = {}
    if processes.rank == 0:  # the process that writes checkpoints
        seen = hash_training_images(train.source, train.indices, threads)
        _print_copies(val, seen, threads)
    return replace(found, seen=seen, seen_before=seen_before)


def leave_out_seen(
    subset: Subset[S], seen: SeenImages, seen_by: str, source_name: str, threads: int, processes: Processes = ALONE
) -> Subset[S]:
    """Return ``subset`` without the images that were ``seen`` before, and print how many there were.

    ``seen_by`` begins the sentence, for example "runs/first was trained on", and ``source_name`` is the name of the
    images in it. Raises DataError if no image is left. All processes call this.
    """
    if not seen:
        return subset
    indices = subset.indices
    is_seen = run_on_first(lambda: find_seen(subset.source, indices, seen, threads), processes)
    count = int(is_seen.sum())
    if count == len(indices):
        raise DataError(
            f"data.source {source_name}: {seen_by} all {count:,} images of it ({subset.title}), which say nothing "
            "about new ones; name other images to measure on"
        )
    if count == 0:
        return subset
    console.print(
        f"{seen_by} {count:,} of the {len(indices):,} images of {source_name} ({subset.title}), which are left out"
    )
    return Subset(subset.source, indices[~is_seen], f"{subset.title} but {count:,} seen before")


def leave_out_first_weights(
    val: Subset[S], data: TrainingData, config: TaskConfig, processes: Processes, source_name: str | None = None
) -> Subset[S]:
    """Return ``val`` without the images that the first weights of a run were trained on with labels."""
    seen_by = f"model.init {config.model.init} was trained on"
    name = source_name or config.data.source
    return leave_out_seen(val, data.seen_before, seen_by, name, config.data.workers, processes)


def leave_out_trained(
    subset: Subset[S], checkpoint: Checkpoint, source_name: str, threads: int, processes: Processes
) -> Subset[S]:
    """Return ``subset`` without the images that a checkpoint was trained on, as :func:`leave_out_seen` does.

    All images are kept if the training measured the same source, so that the figures agree with those of the training,
    or if an earlier version of ehm wrote the checkpoint, without its images.
    """
    training = read_training_data(checkpoint)
    if training is None:
        return subset
    # a validation part that the training measured is measured again completely, including copies of training images
    if subset.selected is None and training.val != training.train:
        found = identify_training_data(subset.source, None, threads, processes).train
        if found == training.val:
            if processes.rank == 0:
                _print_copies(subset, training.all_seen, threads)
            return subset
    seen_by = f"{checkpoint.folder} was trained on"
    return leave_out_seen(subset, training.all_seen, seen_by, source_name, threads, processes)


def holds_training_images(checkpoint: Checkpoint, config: TaskConfig, source: Source, processes: Processes) -> bool:
    """Return whether the images of ``source`` are those of the source that a checkpoint was trained on.

    If the checkpoint does not know its images, the paths of ``data.source`` are compared. All processes call this.
    """
    training = read_training_data(checkpoint)
    if training is None:
        return _is_same_path(config.data.source, checkpoint.metadata["config"]["data"]["source"])
    return identify_training_data(source, None, config.data.workers, processes).train == training.train


def select_subset(
    checkpoint: Checkpoint,
    config: TaskConfig,
    source: S,
    *,
    hold_out: Callable[[], Subset[S]],
    open_val: Callable[[], S],
    processes: Processes,
) -> Subset[S]:
    """Return the images of ``source`` that the model of a checkpoint is measured on.

    They are the first of these that applies, without images that the model was trained on:

    - the validation part of ``source``, which ``open_val`` opens, if it has one;
    - the fold that ``hold_out`` returns, if ``source`` has the images of the training and that held out a fold;
    - all images.

    All processes call this.
    """
    if source.split == "train":
        subset = Subset(open_val(), None, "val")
    elif _may_have_held_out_fold(checkpoint) and holds_training_images(checkpoint, config, source, processes):
        subset = hold_out()
        # any other fold than the one that the training held out has images to leave out
        trained = checkpoint.metadata["config"]
        if (trained["folds"], trained["fold"]) == (config.folds, config.fold):
            return subset
    else:
        subset = Subset(source, None, "all")
    return leave_out_trained(subset, checkpoint, config.data.source, config.data.workers, processes)


def _may_have_held_out_fold(checkpoint: Checkpoint) -> bool:
    """Return whether the training may have held out a fold; if it measured another source, it did not."""
    training = read_training_data(checkpoint)
    return training is None or training.val == training.train


def _print_copies(subset: Subset[Source], seen: SeenImages, threads: int) -> None:
    """Print how many images of ``subset``, all of which are measured, are copies of training images."""
    copies = int(find_seen(subset.source, subset.indices, seen, threads).sum())
    if copies:
        console.print(
            f"{copies:,} of the {len(subset):,} images to measure on ({subset.title}) are copies of images to train on"
        )


def _refuse_fold(config: TaskConfig, train: Subset[Source], val: Subset[Source]) -> None:
    """Raise ConfigError if ``fold`` is set although no fold is held out."""
    if config.fold and val.source is not train.source:
        raise ConfigError(
            f"fold {config.fold}: no fold of data.source {config.data.source} is held out, because there are other "
            f"images to measure on ({val.title}); leave fold out"
        )


def _is_same_path(first: str, second: str) -> bool:
    return os.path.realpath(os.path.expanduser(first)) == os.path.realpath(os.path.expanduser(second))
