"""Fine-tuning an encoder for a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ehm.config import TaskConfig, read_config
from ehm.errors import ConfigError
from ehm.suggestions import suggest
from ehm.tasks.registry import TASKS
from ehm.training.run import CONFIG_FILE, open_run
from ehm.training.supervised import TaskResult, train_task

__all__ = ["finetune"]

DEFAULT_OUT = Path("runs/finetune")
_DEFAULT_TASK = next(iter(TASKS))


def finetune(
    config: TaskConfig | str | Path | None = None,
    *,
    task: str | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
) -> TaskResult[Any]:
    """Train for a task as ``config`` says (a file, the name of a shipped one, or an object).

    ``task`` is ``classification`` or another of :data:`ehm.tasks.registry.TASKS`; left out, it is the one that
    ``config`` names, classification if none. Without ``config`` the task's own is taken, for classification ELPV's.
    ``overrides`` are ``key=value`` strings, as ``--set`` takes them. With ``resume`` the newest complete checkpoint in
    ``out`` is continued and ends with the weights of a run that was never stopped. Raises EhmError on bad input and
    TrainingError if the loss is not finite.
    """
    folder = Path(out or DEFAULT_OUT)
    # the task decides which configuration is read, so that it is found out first
    entry = TASKS[_choose_task(task, config, folder, resume)]
    run = open_run(entry.config, entry.recipe, config, overrides, device, folder, resume=resume)
    with run.explain_write_errors():
        # only the subclass knows how a task is made from its configuration
        task_class: Any = entry.load_class()
        return train_task(task_class(run.config, run.backend, run.start), run, title="finetune")


def _choose_task(asked: str | None, config: TaskConfig | str | Path | None, folder: Path, resume: bool) -> str:
    """Return the task that the caller asked for, or that the configuration names; ConfigError if they disagree."""
    configured = _read_task(config, folder, resume)
    name = asked or configured or _DEFAULT_TASK
    if name not in TASKS:
        raise ConfigError(f"task {name}: should be one of {', '.join(TASKS)}{suggest(name, TASKS)}")
    if configured not in (None, name):
        raise ConfigError(f"--task {name}: {config or folder} is a configuration of task {configured}")
    return name


def _read_task(config: TaskConfig | str | Path | None, folder: Path, resume: bool) -> str | None:
    """Return the task of a configuration, or of the one that a resumed run keeps; None if there is none."""
    if isinstance(config, TaskConfig):
        return config.task
    stored = folder / CONFIG_FILE
    # without the file open_run says that there is no run
    if config is None and resume and stored.is_file():
        config = stored
    if config is None:
        return None
    return str(read_config(config).get("task") or _DEFAULT_TASK)
