"""Facts about a run: its network, data and machine, and the settings that differ from the defaults."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from ehm.config import TrainConfig
from ehm.config.keys import format_yaml
from ehm.config.section import Section, flatten
from ehm.report.numbers import format_number
from ehm.report.record import COMMAND_NAMES, RunRecord
from ehm.storage.names import escape_undecodable

__all__ = [
    "OBJECTIVE_NAMES",
    "ChangedSetting",
    "describe_run",
    "list_changed_settings",
    "quote_path",
    "write_repeat_command",
]

OBJECTIVE_NAMES = {
    "mae": "MAE",
    "simmim": "SimMIM",
    "beit": "BEiT",
    "feature": "the features of a teacher",
}
"""The objectives by the names that papers give them."""
_DEFAULT_KEYS = {"objective", "encoder", "task"}
"""Keys that choose the defaults, and therefore never differ from them."""


@dataclass(frozen=True)
class ChangedSetting:
    """A key whose value is not the default, with both in YAML, and the meaning of the key."""

    key: str
    value: str
    default: str
    meaning: str


def quote_path(path: object) -> str:
    """Quote a path for a shell."""
    return shlex.quote(escape_undecodable(str(path)))


def write_repeat_command(record: RunRecord) -> str:
    """Return the command that repeats a run in another folder."""
    config = quote_path(record.folder / "config.yaml")
    return f"{COMMAND_NAMES[record.kind]} --config {config} --out {quote_path(f'{record.folder}-again')}"


def describe_run(record: RunRecord) -> list[tuple[str, str]]:
    """Return facts about the run as pairs of a name and a value; unknown ones are left out."""
    facts: list[tuple[str, str]] = []
    if record.kind == "pretrain":
        facts += _describe_pretraining(record)
    elif record.is_task:
        facts.append(("Began with", str(record.setting("model.init") or "random weights")))
    if record.state.get("encoder") and record.is_task:
        sizes = [f"{name} {format_yaml(value)}" for name, value in record.state["encoder"].items()]
        facts.append(("Encoder", ", ".join(sizes)))
    facts.append(("Images", _describe_images(record)))
    facts.append(("Length", _describe_length(record)))
    optim = f"batch {record.setting('optim.batch_size')}, peak rate {_format_rate(record)}"
    if record.setting("optimizer"):
        optim = f"{record.setting('optimizer')}, {optim}"
    facts.append(("Optimiser", optim))
    facts.append(("Seed", str(record.setting("run.seed"))))
    if record.state.get("device"):
        facts.append(("Device", str(record.state["device"])))
    versions = record.state.get("versions") or {}
    if versions:
        facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if record.checkpoint is not None:
        facts.append(("Checkpoint", str(record.checkpoint)))
    return facts


def list_changed_settings(record: RunRecord) -> list[ChangedSetting]:
    """Return the keys whose values are not those of the published recipe, or of the task's defaults."""
    defaults = _find_defaults(record)
    if defaults is None:
        return []
    meanings = dict(_list_meanings(defaults))
    known = flatten(defaults.model_dump(mode="json"))
    changed = []
    for key, value in flatten(record.config).items():
        if key in _DEFAULT_KEYS or key not in known or value == known[key]:
            continue
        changed.append(ChangedSetting(key, format_yaml(value), format_yaml(known[key]), meanings.get(key, "")))
    return changed


def _describe_pretraining(record: RunRecord) -> Iterator[tuple[str, str]]:
    size = record.setting("image_size")
    encoder = f"{record.setting('encoder')}"
    try:
        spec = TrainConfig.model_validate(record.config).spec
        encoder += f", {spec.width} wide, {spec.blocks} blocks"
    except (ValidationError, ValueError):  # written by a version with other keys
        pass
    if isinstance(size, list | tuple):
        encoder += f", {size[0]} x {size[1]} pixels in patches of {record.setting('patch_size')}"
    yield "Encoder", encoder
    yield "Objective", OBJECTIVE_NAMES.get(record.setting("objective"), str(record.setting("objective")))
    masking = f"{record.setting('masking')}, {record.setting('mask.ratio'):.0%} hidden"
    if record.setting("masking") == "evolved":
        low, high = record.setting("mask.depth_range") or (0, 1)
        masking += f", depth {low:g} to {high:g}"
    yield "Masking", masking
    if record.setting("model.init"):
        yield "Began with", str(record.setting("model.init"))


def _describe_images(record: RunRecord) -> str:
    text = str(record.setting("data.source"))
    data = record.state.get("data") or {}
    if data.get("train"):
        text += f", {data['train']['images']:,} images"
    if data.get("val") and data["val"] != data["train"]:
        text += f", measured on {data['val']['images']:,} others"
    elif record.metrics.get("part"):
        text += f", measured on {record.metrics['part']}"
    return text


def _describe_length(record: RunRecord) -> str:
    text = f"{record.step:,} steps"
    if record.total_steps is not None:
        text = f"{record.step:,} of {record.total_steps:,} steps"
    if record.steps_per_epoch is not None:
        text += f", {format_number(record.step / record.steps_per_epoch)} epochs of {record.steps_per_epoch:,}"
    return text


def _format_rate(record: RunRecord) -> str:
    # optim.base_lr is the rate for batches of 256 images
    return format_number(float(record.setting("optim.base_lr")) * int(record.setting("optim.batch_size")) / 256)


def _find_defaults(record: RunRecord) -> Section | None:
    """Return the configuration that the run would have without any settings, None if there is none."""
    values = {}
    if record.kind == "pretrain":
        values = {key: record.setting(key) for key in ("objective", "encoder")}
    try:
        return record.config_class.model_validate(values)
    except ValidationError:  # an objective that needs more, or an encoder of another version
        return None


def _list_meanings(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted keys of ``section`` and of the sections in it, each with its description."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _list_meanings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""
