"""Weights & Biases: a run of the project in ``WANDB_PROJECT`` (``ehm``), whose files are in the run's ``wandb/``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ehm.training.trackers.base import Status, TrackedRun, TrackerRun

__all__ = ["WandbTracker"]

_PROJECT = "ehm"


class WandbTracker:
    """A run of Weights & Biases.

    A resumed run sends the steps after its checkpoint again; the server drops the ones that it has, whose values are
    the same. ``WANDB_MODE=offline`` only writes files, new ones with the same id for a resumed run.
    """

    def start(self, run: TrackedRun) -> TrackerRun:
        """Create a run, or continue the one with the id ``run.id``."""
        # no reports about errors of the library to its authors
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            console="off",  # the output of this process is that of the library alone
            disable_git=True,
            silent=True,
            x_disable_meta=True,  # no facts about the program, which is only the tracker's process
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            config=dict(run.settings),
            id=run.id,
            resume="allow" if run.id is not None else None,
            settings=settings,
        )
        return TrackerRun(self._run.id, None if self._run.offline else self._run.url)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send ``values``."""
        self._run.log(dict(values), step=step)

    def add_picture(self, step: int, name: str, path: Path) -> None:
        """Send a picture, which is shown beside those of other steps."""
        import wandb

        self._run.log({name: wandb.Image(str(path))}, step=step)

    def finish(self, status: Status) -> None:
        """Send what is left; a run that did not reach its end is shown as failed."""
        self._run.finish(exit_code=0 if status == "finished" else 1)
