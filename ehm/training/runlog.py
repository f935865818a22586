"""The log of a run while it works: JSON lines, TensorBoard, and a progress bar with an ETA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ehm.console import console
from ehm.errors import WriteError
from ehm.storage.writing import report_write_errors, write_text
from ehm.training.curves import Curves

__all__ = ["RunLog"]

_SHOWN = (
    "loss",
    "grad_norm",
    "images_per_second",
    "data_wait",
    "target_spread",
    "mask_level",
    "top1",
    "balanced_accuracy",
    "mse",
    "codes_used",
    "perplexity",
    "temperature",
)
"""Values that fit beside a progress bar; all of them are in the files."""
_LINES_OF_A_RUN = 20
"""Lines that are printed in place of a bar."""


class RunLog:
    """Writes ``out/metrics.jsonl`` and ``out/tensorboard``, and draws progress on a terminal.

    Away from a terminal one line appears for every twentieth of the run. A resumed run (``first_step`` > 0) drops the
    lines that it is going to write again. With ``silent`` nothing is written: of several processes one logs.
    """

    def __init__(
        self,
        out: Path,
        total_steps: int,
        first_step: int = 0,
        title: str = "train",
        tensorboard: bool = True,
        silent: bool = False,
    ) -> None:
        self._path = out / "metrics.jsonl"
        self._board_path = out / "tensorboard"
        self._total_steps = total_steps
        self._first_step = first_step
        self._title = title
        self._tensorboard = tensorboard
        self._silent = silent
        self._curves: Curves | None = None
        self._file: IO[str] | None = None
        # markup is off, as titles and values may hold names of users' classes and files
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            console=console,
            disable=silent or not console.is_terminal,
        )
        self._printed_part = -1

    def __enter__(self) -> RunLog:
        if self._silent:
            return self
        # the steps after the checkpoint are going to be taken once more
        write_text(self._path, "".join(_read_lines_before(self._path, self._first_step)))
        if self._tensorboard:
            self._curves = Curves(self._board_path, self._first_step)
        with report_write_errors(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        self._progress.start()
        self._task = self._progress.add_task(
            self._title, total=self._total_steps, completed=self._first_step, values=""
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # by a stack, so that the second file is closed even if the first one cannot be
        with ExitStack() as stack:
            for opened in (self._file, self._curves):
                if opened is not None:
                    stack.callback(_close_file, opened, failed=error is not None)
            self._progress.stop()

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
        if self._curves is not None:
            self._curves.add_values(step, values)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name in _SHOWN)
        self._progress.update(self._task, completed=step, values=shown)
        part = _LINES_OF_A_RUN * step // max(1, self._total_steps)
        if not console.is_terminal and part != self._printed_part:
            self._printed_part = part
            console.print(f"{self._title} {step}/{self._total_steps}  {shown}{self._format_eta()}")

    def _format_eta(self) -> str:
        remaining = self._progress.tasks[0].time_remaining
        if remaining is None:
            return ""
        minutes, seconds = divmod(int(remaining), 60)
        return f"  ETA {minutes}:{seconds:02d}"


def _close_file(opened: IO[str] | Curves, failed: bool) -> None:
    """Close a file; if the run has ``failed`` already, what still cannot be written then hides no earlier error."""
    with suppress(OSError, WriteError) if failed else nullcontext():
        opened.close()


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
