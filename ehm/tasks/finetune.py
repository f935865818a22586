"""Fine-tuning an encoder for a task."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ehm import backends
from ehm.config import TASKS, TaskConfig, read_config
from ehm.errors import ConfigError
from ehm.training.runs import CONFIG_FILE, agree, begin, explain_stop
from ehm.training.supervised import Result, fit

__all__ = ["finetune"]

_HOMES = {
    "classification": ("ehm.tasks.classification.task:Classification", "elpv/finetune"),
    "detection": ("ehm.tasks.detection.task:Detection", "detection/coco_vit_base_1x"),
    "segmentation": ("ehm.tasks.segmentation.task:Segmentation", "segmentation/ade20k_vit_base_mae"),
    "retrieval": ("ehm.tasks.retrieval.task:Retrieval", "retrieval/gldv2_vit_base"),
}
"""The class of each task, and the shipped configuration that is taken if none is given."""


def finetune(
    config: TaskConfig | str | Path | None = None,
    *,
    task: str | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
) -> Result[Any]:
    """Train for a task as ``config`` says (a file, the name of a shipped one, or an object).

    ``task`` is ``classification`` or another of :data:`ehm.config.TASKS`; left out, it is the one that ``config``
    names, classification if none. Without ``config`` the task's own is taken, for classification ELPV's. ``overrides``
    are ``key=value`` strings, as ``--set`` takes them. With ``resume`` the newest complete checkpoint in ``out`` is
    continued and ends with the weights of a run that was never stopped. Raises EhmError on bad input and TrainingError
    where the loss is not finite.
    """
    folder = Path(out) if out is not None else Path("runs") / "finetune"
    name = _task(task, config, folder, resume)
    home, default = _HOMES[name]
    settings, start = begin(TASKS[name], default, config, overrides, folder, resume)
    backend = backends.get(device)
    agree(backend.processes, start)
    module, _, kind = home.partition(":")
    with explain_stop(folder):
        return fit(getattr(import_module(module), kind)(settings, backend, start), backend, folder, start)


def _task(asked: str | None, config: TaskConfig | str | Path | None, folder: Path, resume: bool) -> str:
    if isinstance(config, TaskConfig):
        said: Any = config.task
    else:
        stored = folder / CONFIG_FILE
        source = stored if resume and config is None and stored.is_file() else config
        said = None if source is None else read_config(source).get("task")
        said = said or (None if source is None else "classification")
    name = asked or said or "classification"
    if name not in TASKS:
        raise ConfigError(f"task {name}: should be one of {', '.join(TASKS)}")
    if said not in (None, name):
        raise ConfigError(f"--task {name}: {config or folder} is a configuration of task {said}")
    return name
