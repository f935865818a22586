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
    """Counts steps of several kinds, whose speeds differ; ``totals`` is the number of steps of each kind.

    ``totals`` has the steps that this process takes, not those that an earlier one has taken: they would have no time.
    """

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._left = dict(totals)
        self._steps = dict.fromkeys(totals, 0)
        self._seconds = dict.fromkeys(totals, 0.0)
        self._total = sum(totals.values())
        self._clock = time.perf_counter()
        self._printed = time.perf_counter()
        self._activity = ""
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

    def show(self, activity: str) -> None:
        """Show ``activity``, for example "timm:vit: knn, split 2 of 5", as what is being done."""
        self._activity = activity
        self._update()

    def advance(self, kind: str) -> None:
        """Count a step that has just ended, and the time since the step before."""
        now = time.perf_counter()
        self._left[kind] -= 1
        self._steps[kind] += 1
        self._seconds[kind] += now - self._clock
        self._clock = now
        self._update()

    def _update(self) -> None:
        done = self._total - sum(self._left.values())
        left = self._describe_time_left()
        self._progress.update(self._bar, completed=done, description=self._activity, left=left)
        now = time.perf_counter()
        if not is_progress_shown() and self._activity and now - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = now
            console.print(f"  {done} of {self._total} steps, {self._activity}  {left}")

    def _describe_time_left(self) -> str:
        """Return the time that the remaining steps take at the speed of their kind so far.

        Kinds without a step so far take an unknown time on top, and the text says "more than".
        """
        seconds = 0.0
        has_unknown = False
        for kind, left in self._left.items():
            if left and self._steps[kind]:
                seconds += left * self._seconds[kind] / self._steps[kind]
            elif left:
                has_unknown = True
        if not seconds:
            return ""
        minutes, rest = divmod(round(seconds), 60)
        bound = "more than " if has_unknown else ""
        return f"ETA {bound}{minutes}:{rest:02d}"
