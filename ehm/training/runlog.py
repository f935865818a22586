"""The log of a run while it works: JSON lines, trackers, and a progress bar with an ETA."""

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
"""Values that fit beside a progress bar; all of them are in the files."""
_LINES_OF_A_RUN = 20
"""Lines that are printed in place of a bar."""


class RunLog:
    """Writes ``out/metrics.jsonl``, tells the ``trackers``, and draws progress on a terminal or in a notebook.

    Elsewhere one line appears for every twentieth of the run. A resumed run (``first_step`` > 0) drops the
    lines that it is going to write again. Trackers are told the ``settings``, the configuration by dotted keys. With
    ``silent`` nothing is written: of several processes one logs.
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
        # by the last two folders, which tell the runs of one project apart
        name = "/".join(out.resolve().parts[-2:])
        self._trackers = TrackerGroup(trackers, TrackedRun(name, out, settings or {}, first_step))
        self._file: IO[str] | None = None
        # markup is off, as titles and values may hold names of users' classes and files
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
        self._printed_part = -1
        self._newest: dict[str, float] = {}

    def __enter__(self) -> RunLog:
        if self._silent:
            return self
        # the steps after the checkpoint are going to be taken once more
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
            # called last, and even if the file cannot be closed
            stack.callback(self._trackers.finish, status)
            stack.callback(self._progress.stop)
            if self._file is not None:
                # a run that has failed already has a reason, which what cannot be written now must not hide
                with suppress(OSError) if error is not None else report_write_errors(self._path):
                    self._file.close()

    def advance(self, step: int) -> None:
        """Move the bar: ``step`` steps are done."""
        if not self._silent:
            self._progress.update(self._task, completed=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` as they stand after ``step`` steps."""
        if self._silent:
            return
        assert self._file is not None
        with report_write_errors(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()  # people and programs follow the file while the run goes on
        self._trackers.log(step, values)
        # what is measured now and then stays until it is measured again
        self._newest |= {name: value for name, value in values.items() if name in _SHOWN}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in self._newest.items())
        self._progress.update(self._task, completed=step, values=shown)
        part = _LINES_OF_A_RUN * step // max(1, self._total_steps)
        if not is_progress_shown() and part != self._printed_part:
            self._printed_part = part
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
    """Return an earlier attempt's lines of steps up to ``step``; a line cut off by a crash is dropped."""
    if step == 0 or not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # cut off by a crash
            continue
    return kept
