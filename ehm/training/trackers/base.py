"""The protocol of a tracker: a program that shows the figures of a run beside those of others, as TensorBoard does.

Another package adds one by an entry point of the group ``ehm.trackers``: its name is what ``run.trackers`` lists, its
value a class without arguments that has the methods of :class:`Tracker`. It may raise whatever it likes: training goes
on, and the user reads one line with the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

__all__ = ["Setting", "Status", "TrackedRun", "Tracker", "TrackerRun"]

Setting = str | int | float | bool
"""A value of the configuration; lists and null are their text in JSON."""

Status = Literal["finished", "failed", "stopped"]
"""The end of a run: at its last step, by an error, or by the user."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is told about.

    ``settings`` is its configuration by dotted keys. A resumed run continues after ``first_step``, and ``id`` is its
    name in the tracker, None if the tracker does not know it yet.
    """

    name: str
    folder: Path
    settings: Mapping[str, Setting]
    first_step: int = 0
    id: str | None = None


@dataclass(frozen=True)
class TrackerRun:
    """A run in the tracker: the ``id`` by which a resumed run is found, and the address of its page."""

    id: str | None = None
    address: str | None = None


class Tracker(Protocol):
    """The calls that a tracker gets, in this order: ``start``, any number of others, ``finish``."""

    def start(self, run: TrackedRun) -> TrackerRun:
        """Begin ``run``, or go on with the one of its ``id``; values of later steps than ``first_step`` come again."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` after ``step`` steps."""
        ...

    def add_picture(self, step: int, name: str, path: Path) -> None:
        """Show the PNG file ``path`` as picture ``name`` after ``step`` steps; do nothing if the tracker has none."""
        ...

    def finish(self, status: Status) -> None:
        """Send what is left, and say how the run ended."""
        ...
