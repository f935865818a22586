"""The identities of the images that a run trains on, which its checkpoints keep.

They tell whether a resumed run has the same images, and whether a model is measured on images that it was trained on.
``state.json`` has the identities of the sources under ``data``. The checkpoints of tasks also have
``images.safetensors``: a key of 8 bytes for every image that was trained on with its label.
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
"""Sorted keys of images, by their kind: hashes of contents, or of names and sizes."""
CONTENT_LIMIT = 200_000
"""Larger training sets have keys of names, because reading all of their images would delay the first step."""
_NO_KEYS = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class TrainingData:
    """The sources that a run is trained on and measured on; ``val`` is None if nothing is measured.

    ``seen`` are the keys of the images that it trains on with labels, ``seen_before`` those of the images that its
    first weights were trained on with labels. Only the first process has them.
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
    """Return the images that ``checkpoint`` was trained on; None if an earlier version of ehm, without them, wrote it.

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
            f"{checkpoint.folder}: the list of images that it was trained on cannot be read"
        ) from None
    return TrainingData(train, val, **groups)


def read_seen_images(init: str | Path) -> SeenImages:
    """Return the images that the weights named by ``model.init`` were trained on with labels; empty if unknown."""
    try:
        checkpoint = find_checkpoint(init)
    except CheckpointError:
        return {}  # reading its weights will raise the error
    if checkpoint is None:
        return {}  # a file of weights or a name of timm's, which keep no keys
    data = read_training_data(checkpoint)
    return {} if data is None else data.all_seen


def identify_training_data(train: Source, val: Source | None, threads: int, processes: Processes) -> TrainingData:
    """Return the identities of the sources that are trained on and measured on.

    All processes call this, and one process of each machine reads the sources. Raises DataError if the images differ
    between machines.
    """

    def identify() -> TrainingData:
        train_identity = identify_source(train, threads)
        if val is None:
            return TrainingData(train_identity)
        if val is train:  # a fold of it is held out
            return TrainingData(train_identity, train_identity)
        return TrainingData(train_identity, identify_source(val, threads))

    # one for each machine, because its other processes would only read the same files at the same time
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
    """Return the keys of the images that are trained on: hashes of their contents, or of their names.

    Names are hashed if there are very many images or if they are in a remote store, because hashing contents reads all
    images before the first step.
    """
    kind: KeyKind = "content" if len(indices) <= CONTENT_LIMIT and not is_far_away(source) else "name"
    # np.unique sorts them, and drops the keys of copies
    keys = np.unique(hash_images(source, indices, kind, threads))
    return {kind: keys[keys != UNREADABLE]}


def find_seen(source: Source, indices: NDArray[np.int64], seen: SeenImages, threads: int) -> NDArray[np.bool_]:
    """Return a mask (n,) of the images at ``indices`` (n,) that are among those ``seen``."""
    found = np.zeros(len(indices), bool)
    for kind, keys in seen.items():
        found |= np.isin(hash_images(source, indices, kind, threads), keys)
    return found


def run_on_first(function: Callable[[], T], processes: Processes) -> T:
    """Run ``function`` in the first of ``processes`` and return its result in all of them; all call this."""
    value = function() if processes.rank == 0 else None
    result: T = processes.gather_values(value)[0]
    return result
