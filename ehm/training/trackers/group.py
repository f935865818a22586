"""The trackers of a run: all get the same calls, and none of them can stop or delay the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ehm.console import console
from ehm.errors import WriteError
from ehm.training.trackers.base import Status, TrackedRun, Tracker
from ehm.training.trackers.process import ProcessTracker, TrackerFailure
from ehm.training.trackers.registry import make_tracker
from ehm.training.trackers.worker import describe_error

__all__ = ["TrackerGroup"]

_IN_THIS_PROCESS = ("tensorboard",)
"""Trackers without a process of their own: they write a local file, as the run does itself."""


class TrackerGroup:
    """The trackers ``names`` of ``run``; if one fails, a line is printed, and it gets no further calls."""

    def __init__(self, names: Sequence[str], run: TrackedRun) -> None:
        self._run = run
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            if name in _IN_THIS_PROCESS:
                self._trackers[name] = make_tracker(name)
            else:
                self._trackers[name] = ProcessTracker(name)

    def start(self) -> None:
        """Begin the run in all trackers."""
        self._call_all(lambda tracker: tracker.start(self._run))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` after ``step`` steps."""
        self._call_all(lambda tracker: tracker.log(step, values))

    def add_picture(self, step: int, name: str, path: Path) -> None:
        """Show the PNG file ``path`` as picture ``name`` after ``step`` steps, in the trackers that can."""
        self._call_all(lambda tracker: tracker.add_picture(step, name, path))

    def finish(self, status: Status) -> None:
        """End the run in all trackers."""
        self._call_all(lambda tracker: tracker.finish(status))

    def _call_all(self, call: Callable[[Tracker], object]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._trackers[name]
                console.print(f"{name} gets no more figures of this run, which goes on without it: {_describe(error)}")
                # let it close its files and connections
                with suppress(Exception):
                    tracker.finish("failed")


def _describe(error: Exception) -> str:
    if isinstance(error, TrackerFailure):
        return str(error)
    if isinstance(error, WriteError):  # without its remedy, which is for a run that has ended
        return f"{error.path}: cannot be written: {error.reason}"
    return describe_error(error)
