"""The log of a running loop: lines of JSON, trackers, and a progress bar with an ETA."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ehm.console import console
from ehm.progress_bar import create_progress, is_progress_shown
from ehm.storage.writing import report_write_errors, write_text
from ehm.training.trackers.base import Setting, Status, TrackedRun
from ehm.training.trackers.group import TrackerGroup

__all__ = ["RunLog"]

_SHOWN = (
    "loss",
    "grad_norm",
    "images_per_second",
    "data_wait",
    "target_spread",
    "mask_level",
    "knn",
    "linear",
    "rankme",
    "feature_spread",
    "knn_ema",
    "linear_ema",
    "rankme_ema",
    "feature_spread_ema",
    "top1",
    "balanced_accuracy",
    "mean_ap",
    "macro_f1",
    "mse",
    "codes_used",
    "perplexity",
    "temperature",
)
"""Values that are shown beside the progress bar; the files have all of them."""
_PROGRESS_LINES = 20
"""Lines, one for each 5 % of the run, that are printed in place of a bar."""


class RunLog:
    """Writes ``out/metrics.jsonl``, passes values on to ``trackers``, and shows a progress bar.

    Away from a terminal or notebook, lines are printed in place of the bar. A resumed run (``first_step`` > 0) drops
    the lines of steps that it takes again. ``settings`` are the configuration by dotted keys, for trackers. With
    ``silent`` nothing is written or shown, because only one of several processes does so.
    """

    def __init__(
        self,
        out: Path,
        total_steps: int,
        first_step: int = 0,
        title: str = "train",
        trackers: Sequence[str] = (),
        settings: Mapping[str, Setting] | None = None,
        silent: bool = False,
    ) -> None:
        self._path = out / "metrics.jsonl"
        self._total_steps = total_steps
        self._first_step = first_step
        self._title = title
        self._silent = silent
        # named by the last two folders, because the last one alone is often the same in several projects
        name = "/".join(out.resolve().parts[-2:])
        self._trackers = TrackerGroup(trackers, TrackedRun(name, out, settings or {}, first_step))
        self._file: IO[str] | None = None
        # without markup, because names of classes and files may look like it
        self._progress = create_progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            hidden=silent,
        )
        self._printed_twentieth = -1
        self._newest: dict[str, float] = {}

    def __enter__(self) -> RunLog:
        if self._silent:
            return self
        # without the lines after the checkpoint, whose steps are taken again
        write_text(self._path, "".join(_read_lines_before(self._path, self._first_step)))
        with report_write_errors(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        self._trackers.start()
        self._progress.start()
        self._task = self._progress.add_task(
            self._title, total=self._total_steps, completed=self._first_step, values=""
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status: Status = "finished"
        if error is not None:
            status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        with ExitStack() as stack:
            # callbacks run at the end, the last one first, and even if closing the file raises an error
            stack.callback(self._trackers.finish, status)
            stack.callback(self._progress.stop)
            if self._file is not None:
                # after a failure, a second error while closing must not hide the first
                with suppress(OSError) if error is not None else report_write_errors(self._path):
                    self._file.close()

    def advance(self, step: int) -> None:
        """Move the bar to ``step``, the number of steps that are done."""
        if not self._silent:
            self._progress.update(self._task, completed=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` after ``step`` steps."""
        if self._silent:
            return
        assert self._file is not None
        with report_write_errors(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()  # people and programs read the file during the run
        self._trackers.log(step, values)
        # values that are not measured at every line are shown until they are measured again
        self._newest |= {name: value for name, value in values.items() if name in _SHOWN}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in self._newest.items())
        self._progress.update(self._task, completed=step, values=shown)
        twentieth = _PROGRESS_LINES * step // max(1, self._total_steps)
        if not is_progress_shown() and twentieth != self._printed_twentieth:
            self._printed_twentieth = twentieth
            console.print(f"{self._title} {step}/{self._total_steps}  {shown}{self._format_eta()}")

    def add_picture(self, step: int, name: str, path: Path) -> None:
        """Show the PNG file ``path`` as picture ``name`` after ``step`` steps, in the trackers that can."""
        if not self._silent:
            self._trackers.add_picture(step, name, path)

    def _format_eta(self) -> str:
        remaining = self._progress.tasks[0].time_remaining
        if remaining is None:
            return ""
        minutes, seconds = divmod(int(remaining), 60)
        return f"  ETA {minutes}:{seconds:02d}"


def _read_lines_before(path: Path, step: int) -> list[str]:
    """Return the lines of a log up to ``step``, without one that a crash has cut off."""
    if step == 0 or not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # a line that was cut off
            continue
    return kept
