"""Read everything in the folder of a run that a report shows, without a training framework."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from ehm.config.commands import COMMANDS
from ehm.config.loading import read_mapping
from ehm.config.renamed import rename_keys
from ehm.config.section import Section
from ehm.config.validation_errors import explain_errors
from ehm.errors import CheckpointError, EhmError
from ehm.report.curves import Curves, read_curves
from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint
from ehm.storage.reading import read_json

__all__ = ["COMMAND_NAMES", "Kind", "RunRecord", "read_record"]

Kind = Literal[
    "pretrain",
    "tokenizer",
    "classification",
    "probe",
    "segmentation",
    "detection",
    "retrieval",
    "vision_language",
]
COMMAND_NAMES: Mapping[Kind, str] = {
    "pretrain": "ehm train",
    "tokenizer": "ehm tokenizer train",
    "classification": "ehm finetune",
    "probe": "ehm probe",
    "segmentation": "ehm finetune --task segmentation",
    "detection": "ehm finetune --task detection",
    "retrieval": "ehm finetune --task retrieval",
    "vision_language": "ehm finetune --task vision_language",
}
"""The command of each kind of run."""
_CLASSES = {name: kind for kind, name in COMMANDS.items()}
"""The class of the configuration of each command."""
_CONFIG_FILE = "config.yaml"
_TASKS: tuple[Kind, ...] = ("segmentation", "detection", "retrieval", "vision_language")


@dataclass(frozen=True)
class RunRecord:
    """The contents of the folder of a run; parts that an unfinished run or an earlier version lacks are empty or None.

    ``state`` are the metadata of the newest checkpoint, and ``metrics`` the contents of ``metrics.json``.
    """

    folder: Path
    kind: Kind
    config: Mapping[str, Any]
    state: Mapping[str, Any]
    curves: Curves
    metrics: Mapping[str, Any]
    checkpoint: Path | None

    @property
    def config_class(self) -> type[Section]:
        """The class of the run's configuration."""
        return _CLASSES[COMMAND_NAMES[self.kind]]

    def setting(self, key: str) -> Any:
        """Return the value of a dotted key of the configuration, None if it has no such key."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping):
                return None
            value = value.get(part)
        return value

    @property
    def is_task(self) -> bool:
        """True for a run that trains with labels."""
        return self.kind not in ("pretrain", "tokenizer")

    @property
    def step(self) -> int:
        """The last step that the checkpoint or the log has."""
        return max(int(self.state.get("step", 0)), self.curves.last_step)

    @property
    def steps_per_epoch(self) -> int | None:
        """The number of steps in an epoch, None if it is not known."""
        if self.state.get("epoch"):
            return max(1, round(self.state["step"] / self.state["epoch"]))
        return self.curves.steps_per_epoch

    @property
    def total_steps(self) -> int | None:
        """The length of the schedule in steps, None if it is not known."""
        if self.setting("optim.steps"):
            return int(self.setting("optim.steps"))
        if self.steps_per_epoch is None or not self.setting("optim.epochs"):
            return None
        return int(self.setting("optim.epochs")) * self.steps_per_epoch

    @property
    def is_complete(self) -> bool:
        """True if all steps of the schedule were taken, or if the run stopped early because nothing improved."""
        if self.has_lost_patience:
            return True
        return self.total_steps is not None and self.step >= self.total_steps

    @property
    def has_lost_patience(self) -> bool:
        """True if the run ended early because measurements brought no new best."""
        patience = self.setting("patience")
        return patience is not None and int(self.state.get("measurements_without_gain", 0)) >= int(patience)

    @property
    def is_stopped(self) -> bool:
        """True if ``run.max_steps`` ended the run before its schedule."""
        most = self.setting("run.max_steps")
        return not self.is_complete and most is not None and self.step >= int(most)


def read_record(folder: Path) -> RunRecord:
    """Read the folder of a run, which may still be running.

    Raises CheckpointError if it has no run, or a configuration with values that no run can have.
    """
    newest = newest_checkpoint(folder / "checkpoints")
    state = open_checkpoint(newest).metadata if newest is not None else {}
    # the file comes first, because the configuration of a probe has keys that its checkpoints leave out
    if (folder / _CONFIG_FILE).is_file():
        config = read_mapping(folder / _CONFIG_FILE, str(folder / _CONFIG_FILE))
    else:
        config = state.get("config", {})
    kind = _recognise_kind(config)
    if kind is None:
        raise CheckpointError(f"{folder}: no run there; expected the folder that --out of ehm train or finetune named")
    curves = read_curves(folder / "metrics.jsonl")
    completed = _complete_config(config, kind, folder / _CONFIG_FILE)
    return RunRecord(folder, kind, completed, state, curves, _read_metrics(folder / "metrics.json"), newest)


def _complete_config(config: Mapping[str, Any], kind: Kind, origin: Path) -> Mapping[str, Any]:
    """Return ``config`` with the defaults of missing keys.

    That of another version of ehm, which may have other keys and rules, is returned as it is. Raises CheckpointError,
    which begins with ``origin``, if a value is none that its key may have, as after an edit.
    """
    values = deepcopy(dict(config))
    rename_keys(values)
    config_class = _CLASSES[COMMAND_NAMES[kind]]
    try:
        return config_class.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        problems = explain_errors(error, config_class, only_values=True)
        if problems:
            raise CheckpointError(f"{origin}: {'; '.join(problems)}") from None
    return config


def _recognise_kind(config: Mapping[str, Any]) -> Kind | None:
    """Return the kind of run with this configuration, by the keys that only one kind has; None if it has no report."""
    if "objective" in config:
        return "pretrain"
    if "vocabulary" in config:
        return "tokenizer"
    if "optim" not in config or "text" in config:  # a run of ehm language train has no report
        return None
    if "neighbours" in config:
        return "probe"
    for task in _TASKS:
        if config.get("task") == task:
            return task
    return "classification"


def _read_metrics(path: Path) -> Mapping[str, Any]:
    """Return the contents of ``metrics.json``; empty if it is missing or damaged, so that the rest can be shown."""
    if not path.is_file():
        return {}
    try:
        metrics = read_json(path)
    except EhmError:
        return {}
    return metrics if isinstance(metrics, Mapping) else {}
