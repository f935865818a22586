"""The progress of a comparison: a bar on a terminal, lines elsewhere, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from ehm.console import console
from ehm.progress_bar import create_progress, is_progress_shown

__all__ = ["Meter"]

_SECONDS_BETWEEN_LINES = 30.0
"""Time from one line of progress to the next, away from a terminal."""


class Meter:
    """Counts steps of several kinds, which take different times; ``totals`` says how many there are of each."""

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._left = dict(totals)
        self._steps = dict.fromkeys(totals, 0)
        self._seconds = dict.fromkeys(totals, 0.0)
        self._total = sum(totals.values())
        self._clock = time.perf_counter()
        self._printed = time.perf_counter()
        self._what = ""
        self._progress = create_progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._bar = self._progress.add_task("", total=self._total, left="")

    def __enter__(self) -> Meter:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def skip(self, kind: str, steps: int) -> None:
        """Leave out ``steps`` that were done before, and count the time from now on."""
        self._left[kind] -= steps
        self._clock = time.perf_counter()
        self._update()

    def show(self, what: str) -> None:
        """Say what is being done."""
        self._what = what
        self._update()

    def advance(self, kind: str) -> None:
        """Note that a step is done, which took the time since the one before."""
        now = time.perf_counter()
        self._left[kind] -= 1
        self._steps[kind] += 1
        self._seconds[kind] += now - self._clock
        self._clock = now
        self._update()

    def _update(self) -> None:
        done = self._total - sum(self._left.values())
        left = self._describe_time_left()
        self._progress.update(self._bar, completed=done, description=self._what, left=left)
        now = time.perf_counter()
        if not is_progress_shown() and self._what and now - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = now
            console.print(f"  {done} of {self._total} steps, {self._what}  {left}")

    def _describe_time_left(self) -> str:
        """Return the time that the remaining steps take at the speed so far; that of a kind without any is unknown."""
        seconds = 0.0
        unknown = False
        for kind, left in self._left.items():
            if left and self._steps[kind]:
                seconds += left * self._seconds[kind] / self._steps[kind]
            elif left:
                unknown = True
        if not seconds:
            return ""
        minutes, rest = divmod(round(seconds), 60)
        return f"ETA {'more than ' if unknown else ''}{minutes}:{rest:02d}"
