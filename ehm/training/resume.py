"""Compare a resumed run with its checkpoint: a change that affects the weights is an error, any other is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ehm import __version__
from ehm.backends.base import Backend
from ehm.config import LanguageTrainingConfig, TaskConfig, TokenizerConfig, TrainConfig, load_config
from ehm.config.section import flatten
from ehm.console import console
from ehm.data.sources.identity import SourceIdentity
from ehm.errors import ConfigError
from ehm.storage.checkpoint import Checkpoint
from ehm.training.training_data import TrainingData, read_training_data

__all__ = ["check_resumed_data", "check_settings", "print_changes"]

Config = TrainConfig | TaskConfig | TokenizerConfig | LanguageTrainingConfig
C = TypeVar("C", bound=Config)
Changes = dict[str, tuple[Any, Any]]
"""The value before and the value now of each key that differs."""
_FREE = {
    "data.workers", "data.source", "data.layout", "data.images", "data.strict", "data.allow_empty_classes",
    "benchmark", "model.init", "model.tokenizer", "mask.build", "optim.accumulate", "cache_features", "patience",
    "data.cache", "data.cache_folder", "data.retries",
}  # fmt: skip
"""Keys that a resumed run may change; so may it all keys of ``run`` except its seed, and of ``_FREE_SECTIONS``.

The paths of images and of the tokenizer are free because their contents are compared instead, and the path of the first
weights because a resumed run does not need them any more.
"""
_FREE_SECTIONS = ("watch.", "data.columns.")
"""Sections whose keys a resumed run may change."""
_FROM_WEIGHTS = (
    "data.channels",
    "data.depth",
    "data.window",
    "data.mean",
    "data.std",
    "data.crop_pct",
    "data.crop_mode",
    "data.interpolation",
)
"""Keys that a task takes from its encoder's weights if its configuration leaves them out."""
_SHOWN_CLASSES = 5
"""Classes that a message lists, at most."""


def check_settings(kind: type[C], config: C, start: Checkpoint) -> None:
    """Raise ConfigError if a resumed run and its checkpoint ``start`` differ in settings that affect the weights."""
    # compared with the checkpoint, because the run's config.yaml may have been edited
    changes = _find_changes(kind, config, start.metadata)
    forbidden = {key: change for key, change in changes.items() if not _is_free(key)}
    if forbidden:
        raise ConfigError(
            f"--resume: {start.folder.name} was trained with other settings: {_describe_changes(forbidden)}; "
            "set them as they were, or start a new run with another --out"
        )


def check_resumed_data(
    start: Checkpoint,
    found: TrainingData,
    classes: Sequence[str] | None,
    source_name: str,
    unit: str = "images",
    labels: str = "labels",
) -> TrainingData | None:
    """Check that a resumed run ``found`` the images that its checkpoint ``start`` was trained on.

    ``classes``, their order and the labels are compared too, unless ``classes`` is None. ``source_name``, ``unit`` and
    ``labels`` are words for messages: the source, the things that are counted, and their labels. Returns the data that
    the checkpoint knows, None if an earlier version of ehm wrote it. Raises ConfigError with the changes.
    """
    name = start.folder.name
    metadata = start.metadata
    stored = read_training_data(start)
    changes = []
    if classes is not None and list(classes) != metadata.get("classes", list(classes)):
        changes.append(_describe_classes(metadata["classes"], classes))
    if stored is None:
        console.print(
            f"  {name} was written by an earlier version of ehm and does not say which images it was trained on: "
            "whether they are the same could not be compared"
        )
    else:
        compared_labels = None if classes is None else labels
        changes += _compare_sources(stored.train, found.train, f"{unit} to train on", compared_labels)
        # the images of a held-out fold come from the source of the training images, which has just been compared
        is_fold = stored.val == stored.train and found.val == found.train
        if stored.val is not None and found.val is not None and not is_fold:
            changes += _compare_sources(stored.val, found.val, f"{unit} to measure on", labels)
    if changes:
        raise ConfigError(
            f"--resume: data.source {source_name} is not what {name} was trained on: {'; '.join(changes)}; bring "
            "back what was there, or start a new run with another --out"
        )
    return stored


def print_changes(config: Config, start: Checkpoint, backend: Backend) -> None:
    """Print the settings, device and versions that have changed since the checkpoint ``start``, if any have.

    Changes that must stop the run have been refused by :func:`check_settings` before.
    """
    metadata = start.metadata
    changes = _find_changes(type(config), config, metadata)
    info = backend.describe_device()
    before = _name_versions(metadata.get("device"), metadata.get("versions", {}))
    now = _name_versions(info.name, {**info.versions, "ehm": __version__, "numpy": np.__version__})
    for key, value in now.items():
        # if only one of the two has a framework, its version has not changed; the device has
        if before.get(key) not in (None, value):
            changes[key] = (before[key], value)
    if changes:
        console.print(f"  changed since then, without harm: {_describe_changes(changes)}")


def _name_versions(device: str | None, versions: Mapping[str, str]) -> dict[str, str | None]:
    named: dict[str, str | None] = {"device": device}
    for name, version in versions.items():
        named[f"version of {name}"] = version
    return named


def _find_changes(kind: type[C], config: C, metadata: Mapping[str, Any]) -> Changes:
    """Return the value in a checkpoint and the value now of each key that differs."""
    # validated again, so that keys that are newer than the checkpoint get their defaults
    before = flatten(load_config(kind, metadata["config"]).model_dump(mode="json"))
    now = flatten(config.model_dump(mode="json"))
    for key in _FROM_WEIGHTS:
        if now.get(key, "") is None:  # left to the weights, which for a resumed run are those of its checkpoint
            now[key] = before[key]
    changes = {}
    for key, value in before.items():
        if value != now.get(key):
            changes[key] = (value, now.get(key))
    return changes


def _is_free(key: str) -> bool:
    return key in _FREE or key.startswith(_FREE_SECTIONS) or (key.startswith("run.") and key != "run.seed")


def _describe_changes(changes: Changes) -> str:
    sentences = []
    for key, (before, now) in changes.items():
        sentences.append(f"{key} was {_format_value(before)} and is {_format_value(now)}")
    return "; ".join(sentences)


def _format_value(value: Any) -> Any:
    """Return ``value`` as it is written in a configuration."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return value


def _compare_sources(before: SourceIdentity, now: SourceIdentity, unit: str, labels: str | None) -> list[str]:
    """Return a list with a sentence on the most obvious difference between two sources, empty if they are equal.

    ``unit`` is the word for the images, and ``labels`` that for their labels, None if these are not compared.
    """
    if before.images != now.images:
        return [f"there were {before.images:,} {unit} and there are {now.images:,}"]
    if before.files != now.files:
        return [f"there are {now.images:,} {unit} as before, but their names, their order or their sizes have changed"]
    if before.sample != now.sample:
        return [f"there are {now.images:,} {unit} of the same names and sizes as before, but they are other images"]
    if labels is not None and before.labels != now.labels:
        return [f"the {labels} of its {now.images:,} {unit} have changed"]
    if labels is not None and before.groups != now.groups:
        return [f"the groups of its {now.images:,} {unit} have changed"]
    return []


def _describe_classes(before: Sequence[str], now: Sequence[str]) -> str:
    if sorted(before) == sorted(now):
        return f"the classes were in the order {_list_some(before)} and are in the order {_list_some(now)}"
    if len(before) == len(now):
        renamed = [f"{old} is now {new}" for old, new in zip(before, now, strict=True) if old != new]
        return f"of the {len(now)} classes {_list_some(renamed)}"
    return f"there were {len(before)} classes ({_list_some(before)}) and there are {len(now)} ({_list_some(now)})"


def _list_some(words: Sequence[str]) -> str:
    more = ", …" if len(words) > _SHOWN_CLASSES else ""
    return ", ".join(words[:_SHOWN_CLASSES]) + more
