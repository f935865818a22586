"""The images that a run trains on, as its checkpoints keep them to know them again.

``state.json`` has the identities of the sources under ``data``. Beside it, a task has ``images.safetensors``: a key of
8 bytes for every image that was trained on with its label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Processes
from ehm.data import Source
from ehm.data.sources.identity import UNREADABLE, KeyKind, SourceIdentity, hash_images, identify_source, is_far_away
from ehm.errors import CheckpointError, DataError
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import Checkpoint, find_checkpoint

__all__ = [
    "SeenImages",
    "TrainingData",
    "find_seen",
    "hash_training_images",
    "identify_training_data",
    "read_seen_images",
    "read_training_data",
    "run_on_first",
]

T = TypeVar("T")
SeenImages = Mapping[KeyKind, NDArray[np.uint64]]
"""Sorted keys of images, by what they are made of."""
CONTENT_LIMIT = 200_000
"""Images up to which a training set is known by content: reading more of them once would delay the first step."""
_NO_KEYS = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class TrainingData:
    """The sources that a run is trained on and measured on; ``val`` is None if nothing is measured.

    ``seen`` are the images that it trains on, ``seen_before`` those that its first weights were trained on, both with
    labels; only the first process has them.
    """

    train: SourceIdentity
    val: SourceIdentity | None = None
    seen: SeenImages = field(default_factory=dict)
    seen_before: SeenImages = field(default_factory=dict)

    @property
    def all_seen(self) -> SeenImages:
        """The keys of all images that the weights have been trained on with labels."""
        all_keys = {}
        for kind in {*self.seen, *self.seen_before}:
            all_keys[kind] = np.union1d(self.seen.get(kind, _NO_KEYS), self.seen_before.get(kind, _NO_KEYS))
        return all_keys

    def to_json(self) -> dict[str, Any]:
        """Return the identities as ``state.json`` keeps them."""
        val = None if self.val is None else asdict(self.val)
        return {"train": asdict(self.train), "val": val}

    def to_arrays(self) -> Arrays:
        """Return the keys as ``images.safetensors`` keeps them."""
        arrays: Arrays = {}
        for name, group in (("seen", self.seen), ("seen_before", self.seen_before)):
            for kind, keys in group.items():
                arrays[f"{name}.{kind}"] = keys
        return arrays


def read_training_data(checkpoint: Checkpoint) -> TrainingData | None:
    """Return what ``checkpoint`` keeps of its images; None if an earlier version wrote it.

    Raises CheckpointError if the file with the keys is missing or was altered.
    """
    stored = checkpoint.metadata.get("data")
    if stored is None:
        return None
    groups: dict[str, dict[KeyKind, NDArray[np.uint64]]] = {"seen": {}, "seen_before": {}}
    try:
        for name, keys in checkpoint.images.items():
            group, _, kind = name.partition(".")
            groups[group][cast(KeyKind, kind)] = keys
        train = SourceIdentity(**stored["train"])
        val = None if stored["val"] is None else SourceIdentity(**stored["val"])
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{checkpoint.folder}: what it says of the images it was trained on cannot be read"
        ) from None
    return TrainingData(train, val, **groups)


def read_seen_images(init: str | Path) -> SeenImages:
    """Return the images that the weights named by ``model.init`` were trained on with labels; none if nobody knows."""
    try:
        checkpoint = find_checkpoint(init)
    except CheckpointError:
        return {}  # what is wrong with it is said when its weights are read
    if checkpoint is None:
        return {}  # a file of weights or a name of timm's
    data = read_training_data(checkpoint)
    return {} if data is None else data.all_seen


def identify_training_data(train: Source, val: Source | None, threads: int, processes: Processes) -> TrainingData:
    """Return the identities of the sources that are trained on and measured on.

    One process of each machine looks, and all call this. Raises DataError if machines hold different images.
    """

    def identify() -> TrainingData:
        train_identity = identify_source(train, threads)
        if val is None:
            return TrainingData(train_identity)
        if val is train:  # a fold of it is held out
            return TrainingData(train_identity, train_identity)
        return TrainingData(train_identity, identify_source(val, threads))

    # the processes of a machine see the same files, and would only read them at the same time
    is_first_of_machine = processes.rank % processes.local_size == 0
    found_here = identify() if is_first_of_machine else None
    everywhere = processes.gather_values(found_here)
    first: TrainingData = everywhere[0]
    for rank, found in enumerate(everywhere):
        if found is not None and found.to_json() != first.to_json():
            raise DataError(
                f"data.source: process {rank} finds other images there ({found.train.images:,}) than process 0 "
                f"({first.train.images:,}); all machines need the same ones"
            )
    return first


def hash_training_images(source: Source, indices: NDArray[np.int64], threads: int) -> SeenImages:
    """Return the keys of the images that are trained on: of their content, or of their names.

    Names are taken if the images are very many or in a store, because all of them would be read before the first step.
    """
    kind: KeyKind = "content" if len(indices) <= CONTENT_LIMIT and not is_far_away(source) else "name"
    # sorted and without copies, for np.isin and for small files
    keys = np.unique(hash_images(source, indices, kind, threads))
    return {kind: keys[keys != UNREADABLE]}


def find_seen(source: Source, indices: NDArray[np.int64], seen: SeenImages, threads: int) -> NDArray[np.bool_]:
    """Return for each image of ``indices`` (n,) whether it is among those ``seen``: (n,)."""
    found = np.zeros(len(indices), bool)
    for kind, keys in seen.items():
        found |= np.isin(hash_images(source, indices, kind, threads), keys)
    return found


def run_on_first(function: Callable[[], T], processes: Processes) -> T:
    """Return the result of ``function``, which the first of ``processes`` alone runs; all call this."""
    value = function() if processes.rank == 0 else None
    result: T = processes.gather_values(value)[0]
    return result
