"""A run of any training loop: its configuration, device and folder, and the checkpoint that it is resumed from.

FOLDER/config.yaml              the configuration, which people may read and --resume does
FOLDER/checkpoints/             the newest checkpoints
FOLDER/metrics.jsonl            the logged values
FOLDER/tensorboard/, trackers/  files of trackers

and files of the loop itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import yaml

from ehm import backends
from ehm.backends.base import Backend, Learner, Processes, TaskLearner, TokenizerLearner
from ehm.config import LanguageTrainingConfig, TaskConfig, TokenizerConfig, TrainConfig, load_config
from ehm.config.section import flatten
from ehm.console import console
from ehm.data import Source
from ehm.data.decoding.depth_notes import describe_depths
from ehm.errors import CheckpointError, ConfigError, WriteError
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import (
    Checkpoint,
    checkpoint_path,
    newest_checkpoint,
    open_to_resume,
    prune_checkpoints,
    save_checkpoint,
)
from ehm.storage.writing import write_text
from ehm.training.plan import RunPlan
from ehm.training.resume import check_settings, print_changes
from ehm.training.runlog import RunLog
from ehm.training.trackers.base import Setting
from ehm.training.trackers.registry import check_trackers

__all__ = ["CONFIG_FILE", "Run", "connect_processes", "open_run", "print_unreadable"]

C = TypeVar("C", bound=TrainConfig | TaskConfig | TokenizerConfig | LanguageTrainingConfig)
CONFIG_FILE = "config.yaml"
_SHOWN_FILES = 20
"""Unreadable files that are listed by name, at most."""
_EXAMPLES = ("elpv/", "easy_vqa/")
"""Folders of shipped configurations that are examples, with small networks and images."""


@dataclass(frozen=True)
class Run(Generic[C]):
    """A training run; ``start`` is the checkpoint that it is resumed from, None for a new run.

    ``is_resumable`` is false for commands that cannot continue from their checkpoints.
    """

    config: C
    backend: Backend
    folder: Path
    start: Checkpoint | None
    is_resumable: bool = True

    @property
    def start_path(self) -> Path | None:
        """The folder of the checkpoint that the run is resumed from."""
        return None if self.start is None else self.start.folder

    @property
    def first_step(self) -> int:
        """The number of steps that are done already: 0 for a new run."""
        return 0 if self.start is None else int(self.start.metadata["step"])

    @property
    def processes(self) -> Processes:
        """The processes that train together."""
        return self.backend.processes

    @property
    def is_main_process(self) -> bool:
        """True for the one process that prints and writes files."""
        return self.processes.rank == 0

    def describe_device(self) -> str:
        """Return the name of the device that the run computes on, and the number of processes if there are several."""
        info = self.backend.describe_device()
        text = f"device {info.name} ({info.description})"
        if self.processes.size > 1:
            text += f", {self.processes.size} processes"
        return text

    def write_config(self) -> None:
        """Write the configuration into the folder, in the main process."""
        if self.is_main_process:
            values = self.config.model_dump(mode="json")
            write_text(self.folder / CONFIG_FILE, yaml.safe_dump(values, sort_keys=False))

    def print_start(self, source: Source, notes: Sequence[str]) -> None:
        """Print notes on the images, further ``notes``, the folder, and the changes since the checkpoint ``start``."""
        for note in (*source.notes, *describe_depths(source), *notes):
            console.print(f"  {note}")
        if self.start is None:
            console.print(f"  into {self.folder}")
        else:
            console.print(f"  into {self.folder}, continuing {self.start.folder.name}")
            print_changes(self.config, self.start, self.backend)

    def open_log(self, last_step: int, first_step: int, title: str) -> RunLog:
        """Return the log of the steps after ``first_step``; it is silent in all processes but the main one.

        ``title`` is the text beside the progress bar.
        """
        settings: dict[str, Setting] = {}
        for key, value in flatten(self.config.model_dump(mode="json")).items():
            is_plain = isinstance(value, (str, int, float))  # includes bool, a subclass of int
            settings[key] = value if is_plain else json.dumps(value)
        return RunLog(
            self.folder,
            last_step,
            first_step,
            title,
            trackers=self.config.run.trackers,
            settings=settings,
            silent=not self.is_main_process,
        )

    def make_metadata(
        self, kind: str, done: int, plan: RunPlan, config: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the metadata that the checkpoints of all loops have in ``state.json``, after ``done`` steps.

        ``config`` is the configuration to store; the one of the run if left out.
        """
        return {
            "kind": kind,
            "epoch": done / plan.steps_per_epoch,
            "step": done,
            "seed": self.config.run.seed,
            "config": config or self.config.model_dump(mode="json"),
            "device": self.backend.describe_device().name,
            "versions": dict(self.backend.describe_device().versions),
        }

    def save_checkpoint(
        self,
        learner: Learner | TaskLearner | TokenizerLearner,
        metadata: dict[str, Any],
        *,
        images: Arrays | None = None,
        subfolder: str = "checkpoints",
        keep: int | None = None,
    ) -> Path:
        """Write a checkpoint into ``subfolder`` and keep only the newest ``keep`` there; all processes call this.

        ``images`` are keys of the images that were trained on; ``keep`` is the setting ``run.keep`` if left out.
        """
        folder = self.folder / subfolder
        state = learner.state()  # all processes have to call this, as each may hold a share of the parameters
        if self.is_main_process:
            written = save_checkpoint(folder, state, metadata, images)
            # old ones are removed when the new one is complete, so that a crash leaves at least one
            prune_checkpoints(folder, keep or self.config.run.keep, written)
        return checkpoint_path(folder, metadata["step"])

    @contextmanager
    def explain_write_errors(self) -> Iterator[None]:
        """Add to a WriteError the newest checkpoint of the run, and how to continue from it."""
        try:
            yield
        except WriteError as error:
            # every checkpoint that has its final name is complete
            saved = newest_checkpoint(self.folder / "checkpoints")
            if saved is None:
                outcome = "no checkpoint was written yet"
                next_step = "start the run again"
            elif self.is_resumable:
                outcome = f"the checkpoint {saved} is complete"
                next_step = f"go on from there with --resume --out {self.folder}"
            else:
                outcome = f"the checkpoint {saved} is complete"
                next_step = f"remove {self.folder} and start again, or choose another --out"
            raise WriteError(error.path, error.reason, error.remedy, outcome, next_step) from None


def open_run(
    kind: type[C],
    default: str,
    config: C | str | Path | None,
    overrides: Sequence[str],
    device: str,
    folder: Path,
    *,
    resume: bool = False,
    is_resumable: bool = True,
) -> Run[C]:
    """Open a run in ``folder``: find its configuration, its device and, if it is resumed, its newest checkpoint.

    Without ``config`` a resumed run takes the configuration stored in ``folder``, and a new run the shipped
    ``default``; if ``overrides`` set an objective, a new run takes the published recipe of that objective instead. All
    processes call this.
    """
    # a new run is refused here, because it would mix its files with those of the other
    newest = newest_checkpoint(folder / "checkpoints")
    if newest is not None and not resume:
        how = "--resume continues it" if is_resumable else "remove it to measure again"
        raise ConfigError(f"--out {folder}: holds a run already; {how}, another --out starts a new one")
    # settings are checked before the device, whose framework takes seconds to import
    settings = _load_settings(kind, default, config, overrides, folder, resume)
    check_trackers(settings.run.trackers)
    start = None
    if newest is not None:
        start = open_to_resume(newest)
        if isinstance(settings, TrainConfig) and settings.awaits_encoder:
            # the encoder was chosen by the first weights, which need not exist any more
            stored = TrainConfig.model_validate(start.metadata["config"])
            settings = cast(C, settings.with_encoder_of(stored))
        check_settings(kind, settings, start)
    backend = backends.get(device, settings.run.deterministic)
    connect_processes(backend.processes, newest)
    return Run(settings, backend, folder, start, is_resumable)


def _load_settings(
    kind: type[C],
    default: str,
    config: C | str | Path | None,
    overrides: Sequence[str],
    folder: Path,
    resume: bool,
) -> C:
    if resume and config is None:
        config = folder / CONFIG_FILE
        if not config.is_file():
            raise CheckpointError(f"--resume: no run in {folder}; --out names the folder of the run to continue")
    if isinstance(config, kind):
        return config
    assert config is None or isinstance(config, (str, Path))
    if config is None and any(override.startswith("objective=") for override in overrides):
        console.print("No --config: taking the objective's published recipe")
    elif config is None:
        # whoever has larger images should not train an example's size without noticing
        note = ", a small example; ehm configs lists others" if default.startswith(_EXAMPLES) else ""
        console.print(f"No --config: taking the shipped {default}{note}")
        config = default
    return load_config(kind, config, overrides)


def connect_processes(processes: Processes, start: Path | None = None) -> None:
    """Silence all processes but the first, and check that all start from the same checkpoint.

    Raises CheckpointError if they do not, which happens if they see different folders.
    """
    console.quiet = processes.rank != 0
    # compared by name, because machines may have mounted the same folder at different paths
    starts = processes.gather_values(start.name if start else "the beginning")
    others = sorted(set(starts) - {starts[0]})
    if others:
        raise CheckpointError(
            f"--resume: process 0 starts from {starts[0]}, others from {', '.join(others)}; "
            "--out must be a folder that all machines share"
        )


def print_unreadable(unreadable: Mapping[str, str], processes: Processes) -> None:
    """List the files that processes skipped, and why; all processes call this."""
    files: dict[str, str] = {}
    for share in processes.gather_values(dict(unreadable)):
        files |= share
    if not files:
        return
    console.print(f"{len(files)} files were skipped because they cannot be read:")
    for name, reason in sorted(files.items())[:_SHOWN_FILES]:
        console.print(f"  {name}: {reason}")
    if len(files) > _SHOWN_FILES:
        console.print(f"  and {len(files) - _SHOWN_FILES} more")
