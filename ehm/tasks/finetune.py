"""``ehm finetune``: fine-tune an encoder for a task."""

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
_DEFAULT_TASK = "classification"


def finetune(
    config: TaskConfig | str | Path | None = None,
    *,
    task: str | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
) -> TaskResult[Any]:
    """Train for a task with the configuration ``config``: a file, the name of a shipped one, or an object.

    ``task`` is a name in :data:`ehm.tasks.registry.TASKS`, by default the one that ``config`` names, or classification
    if it names none. Without ``config`` the shipped recipe of the task is taken; for classification it is ELPV's.
    ``overrides`` are ``key=value`` strings, as for ``--set``. ``resume`` continues from the newest complete checkpoint
    in ``out``, and ends with the same weights as a run that was not stopped. Raises EhmError on bad input and
    TrainingError if the loss is not finite.
    """
    folder = Path(out or DEFAULT_OUT)
    # the task comes first, because each task has a configuration class of its own
    entry = TASKS[_choose_task(task, config, folder, resume)]
    run = open_run(entry.config, entry.recipe, config, overrides, device, folder, resume=resume)
    with run.explain_write_errors():
        # Any, because Task does not declare the constructor that its subclasses have
        task_class: Any = entry.load_class()
        return train_task(task_class(run.config, run.backend, run.start), run, title="finetune")


def _choose_task(requested: str | None, config: TaskConfig | str | Path | None, folder: Path, resume: bool) -> str:
    """Return the ``requested`` task, or else that of the configuration; raises ConfigError if they disagree."""
    configured = _read_task(config, folder, resume)
    name = requested or configured or _DEFAULT_TASK
    if name not in TASKS:
        raise ConfigError(f"task {name}: should be one of {', '.join(TASKS)}{suggest(name, TASKS)}")
    if configured not in (None, name):
        raise ConfigError(f"--task {name}: {config or folder} is a configuration of task {configured}")
    return name


def _read_task(config: TaskConfig | str | Path | None, folder: Path, resume: bool) -> str | None:
    """Return the task of a configuration, or of the stored one of a resumed run; None if there is no configuration."""
    if isinstance(config, TaskConfig):
        return config.task
    stored = folder / CONFIG_FILE
    # if the file is missing, open_run raises the error
    if config is None and resume and stored.is_file():
        config = stored
    if config is None:
        return None
    return str(read_config(config).get("task") or _DEFAULT_TASK)
