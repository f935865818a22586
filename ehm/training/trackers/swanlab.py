"""SwanLab: an experiment of the project in ``SWANLAB_PROJECT_NAME`` (``ehm``), whose files are in ``swanlab/``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ehm.training.trackers.base import Status, TrackedRun, TrackerRun

__all__ = ["SwanLabTracker"]

_PROJECT = "ehm"
_PROJECT_VARIABLES = ("SWANLAB_PROJECT_NAME", "SWANLAB_PROJ_NAME")
_NAME_VARIABLES = ("SWANLAB_EXPERIMENT_NAME", "SWANLAB_EXP_NAME")
_FOLDER_VARIABLES = ("SWANLAB_LOG_DIR", "SWANLAB_LOGDIR")
"""Variables that the library reads itself, today's and the one of its earlier versions."""
_STATES: dict[Status, str] = {"finished": "success", "failed": "crashed", "stopped": "aborted"}


class SwanLabTracker:
    """An experiment of SwanLab. A resumed run sends the steps after its checkpoint again, with the same values.

    ``SWANLAB_MODE=offline`` only writes files, new ones with the same id for a resumed run.
    """

    def start(self, run: TrackedRun) -> TrackerRun:
        """Create an experiment, or continue the one with the id ``run.id``."""
        # the library must not ask questions on a terminal, which this process does not have
        os.environ.setdefault("SWANLAB_INTERACTIVE", "false")
        import swanlab

        given: dict[str, Any] = {}
        if not _is_set(_PROJECT_VARIABLES):
            given["project"] = _PROJECT
        if not _is_set(_NAME_VARIABLES):
            given["name"] = run.name
        if not _is_set(_FOLDER_VARIABLES):
            given["log_dir"] = str(run.folder / "swanlab")
        if run.id is not None:
            given["id"] = run.id
            given["resume"] = "allow"
        settings = swanlab.Settings.model_validate(
            {
                # the output of this process is that of the library alone
                "terminal": {"proxy_type": "none"},
                # no facts about the program, which is only the tracker's process
                "probe": {"runtime": False, "requirements": False, "git": False},
            }
        )
        self._run = swanlab.init(config=dict(run.settings), settings=settings, **given)
        address = None
        with suppress(ValueError):  # raised if there is no server, and so no address
            address = self._run.url
        return TrackerRun(self._run.id, address)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send ``values``."""
        self._run.log(dict(values), step=step)

    def add_picture(self, step: int, name: str, path: Path) -> None:
        """Send a picture, which is shown beside those of other steps."""
        import swanlab

        self._run.log({name: swanlab.Image(str(path))}, step=step)

    def finish(self, status: Status) -> None:
        """Send what is left, and say how the run ended."""
        self._run.finish(state=_STATES[status])


def _is_set(names: tuple[str, ...]) -> bool:
    return any(name in os.environ for name in names)
