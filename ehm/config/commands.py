"""The command that a configuration is for, recognised by its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from ehm.config.comparison import MeasureConfig, StudyConfig
from ehm.config.data import DataConfig, ImageData
from ehm.config.export import ExportConfig
from ehm.config.language_training import LanguageTrainingConfig
from ehm.config.pretraining import TrainConfig
from ehm.config.section import Section, find_section
from ehm.config.tasks import (
    DetectionConfig,
    FinetuneConfig,
    ProbeConfig,
    RetrievalConfig,
    SegmentationConfig,
    VisionLanguageConfig,
)
from ehm.config.tokenizer import TokenizerConfig

__all__ = ["COMMANDS", "list_key_names", "list_names", "recognise_command"]

COMMANDS: dict[type[Section], str] = {
    TrainConfig: "ehm train",
    FinetuneConfig: "ehm finetune",
    ProbeConfig: "ehm probe",
    DetectionConfig: "ehm finetune --task detection",
    SegmentationConfig: "ehm finetune --task segmentation",
    RetrievalConfig: "ehm finetune --task retrieval",
    VisionLanguageConfig: "ehm finetune --task vision_language",
    TokenizerConfig: "ehm tokenizer train",
    LanguageTrainingConfig: "ehm language train",
    ExportConfig: "ehm export",
    MeasureConfig: "ehm compare",
    StudyConfig: "ehm compare --train",
}
"""The command of each kind of configuration; of two that fit equally well the first is meant."""

_SAME_KEYS = {"evaluate": "finetune"}
"""Commands that have no configuration of their own, and the ones whose keys they take."""
_READERS: dict[str, type[Section]] = {"data": ImageData, "predict": DataConfig}
"""Commands whose keys are those of the section ``data``, which say how images are read."""


def recognise_command(values: Mapping[str, Any], asked: type[Section]) -> str | None:
    """Return the command whose configuration ``values`` are, or None if no other fits better than ``asked``."""
    unknown_keys = {kind: _count_unknown(values, kind) for kind in COMMANDS}
    # min() takes the first of equals, so the order of COMMANDS decides.
    best = min(COMMANDS, key=lambda kind: unknown_keys[kind])
    if asked not in COMMANDS or unknown_keys[best] == unknown_keys[asked]:
        return None
    return COMMANDS[best]


@cache
def list_key_names(command: str) -> frozenset[str]:
    """Return the dotted keys, and the sections, that ``--set`` of ``ehm COMMAND`` takes, of all its tasks together."""
    if command in _READERS:
        return frozenset(list_names(_READERS[command], "data."))
    owner = _SAME_KEYS.get(command, command)
    names: set[str] = set()
    for kind, words in COMMANDS.items():
        if words.split()[1] == owner and kind is not StudyConfig:  # a study is changed in its file
            names.update(list_names(kind))
    return frozenset(names)


def list_names(kind: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a section with ``prefix`` before them, and those of the sections in it."""
    for name, field in kind.model_fields.items():
        yield prefix + name
        section = find_section(field.annotation)
        if section is not None:
            yield from list_names(section, f"{prefix}{name}.")


def _count_unknown(values: Mapping[str, Any], kind: type[Section]) -> int:
    """Count the keys of ``values``, and of the sections in it, that ``kind`` does not have."""
    count = 0
    for key, value in values.items():
        if key not in kind.model_fields:
            count += 1
            continue
        section = find_section(kind.model_fields[key].annotation)
        if isinstance(value, Mapping) and section is not None:
            count += sum(inner not in section.model_fields for inner in value)
    task = kind.model_fields.get("task")
    if task is not None and "task" in values and values["task"] != task.default:
        count += 1  # the name of another task counts like a key that is not there
    return count
