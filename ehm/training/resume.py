"""What a resumed run compares with its checkpoint: what shapes the weights stops it, what does not is only said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ehm import __version__
from ehm.backends.base import Backend
from ehm.config import TaskConfig, TokenizerConfig, TrainConfig, load_config
from ehm.console import console
from ehm.data.sources.identity import SourceIdentity
from ehm.errors import ConfigError
from ehm.storage.checkpoint import open_checkpoint
from ehm.training.training_data import TrainingData, read_training_data

__all__ = ["check_resumed_data", "check_settings", "print_changes"]

Config = TrainConfig | TaskConfig | TokenizerConfig
C = TypeVar("C", bound=Config)
_FREE = {
    "data.workers", "data.source", "data.layout", "data.strict", "data.allow_empty_classes", "benchmark", "model.init",
    "model.tokenizer", "mask.build", "optim.accumulate"
}  # fmt: skip
"""Keys that a resumed run may change, besides those of ``run`` but its seed.

Images and the tokenizer are compared themselves, wherever they lie; first weights have no more say.
"""
_FROM_WEIGHTS = ("data.mean", "data.std", "data.crop_pct", "data.crop_mode", "data.interpolation")
"""What a task takes from its encoder's weights if its configuration leaves it out."""
_SHOWN = 5
"""Classes that a message names."""


def check_settings(kind: type[C], config: C, start: Path) -> None:
    """Raise ConfigError if a resumed run has other settings than the checkpoint ``start`` that shape the weights.

    The checkpoint is asked, and not the run's ``config.yaml``, which anybody may have edited.
    """
    changes = _find_changes(kind, config, open_checkpoint(start).metadata)
    binding = {key: change for key, change in changes.items() if not _is_free(key)}
    if binding:
        raise ConfigError(
            f"--resume: {start.name} was trained with other settings: {'; '.join(_describe(binding))}; "
            "set them as they were, or start a new run with another --out"
        )


def check_resumed_data(
    start: Path, found: TrainingData, classes: Sequence[str] | None, name: str
) -> TrainingData | None:
    """Return what the checkpoint ``start`` keeps of its images if the run ``found`` the same ones; None if nothing.

    ``classes`` are compared too, by name and order, and so are labels; None if the run has none. ``name`` is the
    source's, for messages. Raises ConfigError that says what has changed.
    """
    opened = open_checkpoint(start)
    meta = opened.metadata
    stored = read_training_data(opened)
    changes = []
    if classes is not None and list(classes) != meta.get("classes", list(classes)):
        changes.append(_describe_classes(meta["classes"], classes))
    if stored is None:
        console.print(
            f"  {start.name} was written by an earlier version of ehm and does not say which images it was trained on: "
            "whether they are the same could not be compared"
        )
    else:
        changes += _compare(stored.train, found.train, "images to train on", labelled=classes is not None)
        held_out = stored.val == stored.train and found.val == found.train  # of what was compared just now
        if stored.val is not None and found.val is not None and not held_out:
            changes += _compare(stored.val, found.val, "images to measure on", labelled=True)
    if changes:
        raise ConfigError(
            f"--resume: data.source {name} is not what {start.name} was trained on: {'; '.join(changes)}; bring back "
            "what was there, or start a new run with another --out"
        )
    return stored


def print_changes(config: Config, start: Path, backend: Backend) -> None:
    """Print which settings, device and versions are others than those that wrote the checkpoint ``start``.

    They need not stop the run, as :func:`check_settings` has seen. Nothing is printed if all is as it was.
    """
    meta = open_checkpoint(start).metadata
    changes = _find_changes(type(config), config, meta)
    versions = {**backend.describe_device().versions, "ehm": __version__, "numpy": np.__version__}
    now = {
        "device": backend.describe_device().name,
        **{f"version of {name}": version for name, version in versions.items()},
    }
    before = {"device": meta.get("device")}
    before |= {f"version of {name}": version for name, version in meta.get("versions", {}).items()}
    changes |= {key: (before[key], value) for key, value in now.items() if before.get(key) not in (None, value)}
    if changes:
        console.print(f"  changed since then, without harm: {'; '.join(_describe(changes))}")


def _find_changes(kind: type[C], config: C, meta: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the value in a checkpoint and the value now of each key that differs."""
    before = _flat(load_config(kind, meta["config"]).model_dump(mode="json"))
    now = _flat(config.model_dump(mode="json"))
    for key in _FROM_WEIGHTS:
        if now.get(key, "") is None:  # as the weights say, and a resumed run's are those of its checkpoint
            now[key] = before[key]
    return {key: (value, now.get(key)) for key, value in before.items() if value != now.get(key)}


def _is_free(key: str) -> bool:
    return key in _FREE or (key.startswith("run.") and key != "run.seed")


def _describe(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{key} was {_spell(before)} and is {_spell(now)}" for key, (before, now) in changes.items()]


def _spell(value: Any) -> Any:
    """Return ``value`` as a configuration spells it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else value


def _compare(before: SourceIdentity, now: SourceIdentity, what: str, labelled: bool) -> list[str]:
    if before.images != now.images:
        return [f"there were {before.images:,} {what} and there are {now.images:,}"]
    if before.files != now.files:
        return [f"there are {now.images:,} {what} as before, but their names, their order or their sizes have changed"]
    if before.sample != now.sample:
        return [f"there are {now.images:,} {what} of the same names and sizes as before, but they are other images"]
    if labelled and before.labels != now.labels:
        return [f"the labels of its {now.images:,} {what} have changed"]
    return []


def _describe_classes(before: Sequence[str], now: Sequence[str]) -> str:
    if sorted(before) == sorted(now):
        return f"the classes were in the order {_shorten(before)} and are in the order {_shorten(now)}"
    if len(before) == len(now):
        renamed = [f"{old} is now {new}" for old, new in zip(before, now, strict=True) if old != new]
        return f"of the {len(now)} classes {_shorten(renamed)}"
    return f"there were {len(before)} classes ({_shorten(before)}) and there are {len(now)} ({_shorten(now)})"


def _shorten(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (", …" if len(words) > _SHOWN else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
