"""Compare a resumed run with its checkpoint: a change that shapes the weights stops it, any other is printed."""

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
"""Keys that a resumed run may change, besides those of ``run`` but its seed, and those of ``watch`` and of the columns
of a table.

Images, labels, groups and the tokenizer are compared themselves, wherever they lie; the first weights play no part any
more.
"""
_FREE_SECTIONS = ("watch.", "data.columns.")
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


def check_settings(kind: type[C], config: C, start: Checkpoint) -> None:
    """Raise ConfigError if a resumed run has other settings than the checkpoint ``start`` that shape the weights."""
    # the checkpoint is compared, and not the run's config.yaml, which anybody may have edited
    changes = _find_changes(kind, config, start.metadata)
    binding = {key: change for key, change in changes.items() if not _is_free(key)}
    if binding:
        raise ConfigError(
            f"--resume: {start.folder.name} was trained with other settings: {_describe_changes(binding)}; "
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
    """Return what the checkpoint ``start`` keeps of its images if the run ``found`` the same ones; None if nothing.

    ``classes`` are compared too, by name and order, and so are labels; None if the run has none. ``source_name``,
    ``unit`` and ``labels``, the names of what is counted and of what belongs to it, are for messages. Raises
    ConfigError that says what has changed.
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
        # a held-out fold is a part of the images to train on, which have been compared just now
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
    """Print which settings, device and versions are others than those that wrote the checkpoint ``start``.

    They need not stop the run, as :func:`check_settings` has seen. Nothing is printed if all is as it was.
    """
    metadata = start.metadata
    changes = _find_changes(type(config), config, metadata)
    info = backend.describe_device()
    before = _name_versions(metadata.get("device"), metadata.get("versions", {}))
    now = _name_versions(info.name, {**info.versions, "ehm": __version__, "numpy": np.__version__})
    for key, value in now.items():
        # a framework that only one of the two has is no change of version: the device has changed
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
    # loaded, so that keys which the version that wrote it did not have get their defaults
    before = flatten(load_config(kind, metadata["config"]).model_dump(mode="json"))
    now = flatten(config.model_dump(mode="json"))
    for key in _FROM_WEIGHTS:
        if now.get(key, "") is None:  # as the weights say, and a resumed run's are those of its checkpoint
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
        sentences.append(f"{key} was {_spell(before)} and is {_spell(now)}")
    return "; ".join(sentences)


def _spell(value: Any) -> Any:
    """Return ``value`` as a configuration spells it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return value


def _compare_sources(before: SourceIdentity, now: SourceIdentity, what: str, labels: str | None) -> list[str]:
    """Return the plainest difference between two sources in words, in a list that is empty if there is none.

    ``labels`` is the name of what belongs to the images, None if that is not compared.
    """
    if before.images != now.images:
        return [f"there were {before.images:,} {what} and there are {now.images:,}"]
    if before.files != now.files:
        return [f"there are {now.images:,} {what} as before, but their names, their order or their sizes have changed"]
    if before.sample != now.sample:
        return [f"there are {now.images:,} {what} of the same names and sizes as before, but they are other images"]
    if labels is not None and before.labels != now.labels:
        return [f"the {labels} of its {now.images:,} {what} have changed"]
    if labels is not None and before.groups != now.groups:
        return [f"the groups of its {now.images:,} {what} have changed"]
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
