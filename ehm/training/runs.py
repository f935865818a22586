"""What every training loop needs around its steps: where a run begins, what it may change, and when a loss is bad."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar

import yaml

from ehm.backends.base import Backend, Learner, Processes, TaskLearner, TokenizerLearner
from ehm.config import TaskConfig, TokenizerConfig, TrainConfig, load_config
from ehm.console import console
from ehm.errors import CheckpointError, ConfigError, TrainingError, WriteError
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import checkpoint_path, newest_checkpoint, prune_checkpoints, save_checkpoint
from ehm.storage.writing import write_text
from ehm.training.resume import check_settings

__all__ = [
    "CONFIG_FILE",
    "Metrics",
    "agree",
    "all_broken",
    "begin",
    "describe_run",
    "explain_stop",
    "mean",
    "on",
    "save",
    "say_broken",
    "store",
    "write_json",
]

C = TypeVar("C", bound=TrainConfig | TaskConfig | TokenizerConfig)
CONFIG_FILE = "config.yaml"


def begin(
    kind: type[C],
    default: str,
    config: C | str | Path | None,
    overrides: Sequence[str],
    folder: Path,
    resume: bool,
    resumable: bool = True,
) -> tuple[C, Path | None]:
    """The configuration of a run in ``folder`` and, where it is resumed, the checkpoint that it starts from.

    Without ``config`` a resumed run keeps the one stored in ``folder`` and a new one takes the shipped ``default``, or
    where ``overrides`` name an objective its published recipe alone.
    """
    start = newest_checkpoint(folder / "checkpoints")
    if start is not None and not resume:
        how = "--resume continues it" if resumable else "remove it to measure again"
        raise ConfigError(f"--out {folder}: holds a run already; {how}, another --out starts a new one")
    if resume and config is None:
        config = folder / CONFIG_FILE
        if not config.is_file():
            raise CheckpointError(f"--resume: no run in {folder}; --out names the folder of the run to continue")
    if isinstance(config, kind):
        settings = config
    else:
        assert config is None or isinstance(config, (str, Path))
        if config is None and any(override.startswith("objective=") for override in overrides):
            console.print("No --config: taking the objective's published recipe")
        elif config is None:
            console.print(f"No --config: taking the shipped {default}")
            config = default
        settings = load_config(kind, config, overrides)
    if start is not None:
        check_settings(kind, settings, start)
    return settings, start


def store(config: TrainConfig | TaskConfig | TokenizerConfig, folder: Path) -> None:
    """Write ``config`` into the run's folder, for people and for ``--resume``."""
    write_text(folder / CONFIG_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def agree(processes: Processes, start: Path | None) -> None:
    """See that all processes start alike, and silence all but the first; CheckpointError where they do not."""
    console.quiet = processes.rank != 0
    starts = processes.gather_values(start.name if start else "the beginning")
    if len(set(starts)) > 1:
        raise CheckpointError(
            f"--resume: process 0 starts from {starts[0]}, others from {', '.join(sorted(set(starts) - {starts[0]}))}; "
            "--out must be a folder that all machines share"
        )


def on(backend: Backend) -> str:
    """The device, or the devices, that a run computes on, in words."""
    info, size = backend.describe_device(), backend.processes.size
    return f"device {info.name} ({info.description})" + (f", {size} processes" if size > 1 else "")


def save(
    folder: Path,
    learner: Learner | TaskLearner | TokenizerLearner,
    meta: dict[str, Any],
    keep: int,
    processes: Processes,
    images: Arrays | None = None,
) -> Path:
    """Write a checkpoint into ``folder`` and leave the newest ``keep`` there; the first process does, all call this.

    ``images`` are the keys of those that were trained on.
    """
    state = learner.state()
    if processes.rank == 0:
        save_checkpoint(folder, state, meta, images)
        prune_checkpoints(folder, keep)
    return checkpoint_path(folder, meta["step"])


@contextmanager
def explain_stop(folder: Path, resumable: bool = True) -> Iterator[None]:
    """Add to a WriteError which checkpoint of the run in ``folder`` survived, and how to go on from it."""
    try:
        yield
    except WriteError as error:
        saved = newest_checkpoint(folder / "checkpoints")
        if saved is None:
            outcome = "no checkpoint was written yet"
            next_step = "start the run again"
        elif resumable:
            outcome = f"the checkpoint {saved} is complete"
            next_step = f"go on from there with --resume --out {folder}"
        else:
            outcome = f"the checkpoint {saved} is complete"
            next_step = f"remove {folder} and start again, or choose another --out"
        raise WriteError(error.path, error.reason, error.remedy, outcome, next_step) from None


def all_broken(broken: Mapping[str, str], processes: Processes) -> dict[str, str]:
    """The broken files of all ``processes``, which all call this, and why each is."""
    return {name: reason for theirs in processes.gather_values(dict(broken)) for name, reason in theirs.items()}


def describe_run(
    kind: str, config: dict[str, Any], backend: Backend, step: int, steps_per_epoch: int
) -> dict[str, Any]:
    """Return what ``state.json`` says of every run; ``config`` is the configuration of the run as JSON."""
    return {
        "kind": kind,
        "epoch": step / steps_per_epoch,
        "step": step,
        "seed": config["run"]["seed"],
        "config": config,
        "device": backend.describe_device().name,
        "versions": dict(backend.describe_device().versions),
    }


class Metrics:
    """Metrics that still lie on the device: reading them is the only synchronisation of a step."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, Mapping[str, SupportsFloat]]] = []

    def add(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Keep the metrics of ``step`` until they are read."""
        self._pending.append((step, values))

    def read(self, saved: Path | None) -> dict[str, float]:
        """The newest metrics, with the mean of all losses since the last time.

        Raises TrainingError at a loss that is not finite; ``saved`` is the last good checkpoint, which it names.
        """
        losses = []
        for step, metrics in self._pending:
            losses.append(float(metrics["loss"]))
            if not math.isfinite(losses[-1]):
                good = f"the last good checkpoint is {saved}" if saved else "no checkpoint was written yet"
                raise TrainingError(
                    f"the loss is {losses[-1]} at step {step}; {good}; "
                    "a lower optim.base_lr, optim.clip_grad=1 or optim.dtype=float32 may help"
                )
        values = {name: float(value) for name, value in self._pending[-1][1].items()}
        self._pending.clear()
        return {**values, "loss": sum(losses) / len(losses)}


def mean(figures: Mapping[str, SupportsFloat], processes: Processes) -> dict[str, float]:
    """``figures`` of a batch's parts, each averaged over all processes; all call this, and wait for each other."""
    shares = processes.gather_values({name: float(value) for name, value in figures.items()})
    return {name: sum(share[name] for share in shares) / len(shares) for name in figures}


def say_broken(broken: Mapping[str, str]) -> None:
    """List the files that were skipped."""
    if not broken:
        return
    console.print(f"{len(broken)} files were skipped because they cannot be read:")
    for name, reason in sorted(broken.items())[:20]:
        console.print(f"  {name}: {reason}")
    if len(broken) > 20:
        console.print(f"  and {len(broken) - 20} more")


def write_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Write ``values`` to ``path``, whole or not at all."""
    return write_text(path, json.dumps(values, indent=2) + "\n")
