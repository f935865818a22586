"""What a run says while it works: JSON lines, TensorBoard, and a progress bar with an ETA."""

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


class RunLog:
    """Writes ``out/metrics.jsonl`` and ``out/tensorboard``, and draws progress on a terminal.

    Away from a terminal one line appears for every twentieth of the run. A resumed run (``first_step`` > 0) drops the
    lines that it is going to write again. A ``silent`` one does none of this: of several processes one speaks.
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
        self._total, self._first, self._title = total_steps, first_step, title
        self._tensorboard, self._silent = tensorboard, silent
        self._curves: Curves | None = None
        self._file: IO[str] | None = None
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
        self._spoken = -1

    def __enter__(self) -> RunLog:
        if self._silent:
            return self
        write_text(self._path, "".join(_lines_before(self._path, self._first)))
        if self._tensorboard:
            self._curves = Curves(self._board_path, self._first)
        with report_write_errors(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        self._progress.start()
        self._task = self._progress.add_task(self._title, total=self._total, completed=self._first, values="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for opened in (self._file, self._curves):
                if opened is not None:
                    stack.callback(_close, opened, failed=error is not None)
            self._progress.stop()

    def advance(self, step: int) -> None:
        """``step`` steps are done."""
        if self._silent:
            return
        self._progress.update(self._task, completed=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` as they stand after ``step`` steps."""
        if self._silent:
            return
        assert self._file is not None
        with report_write_errors(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if self._curves is not None:
            self._curves.add(step, values)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name in _SHOWN)
        self._progress.update(self._task, completed=step, values=shown)
        part = 20 * step // max(1, self._total)
        if not console.is_terminal and part != self._spoken:
            self._spoken = part
            console.print(f"{self._title} {step}/{self._total}  {shown}{self._eta()}")

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self._progress.console.print(text)

    def _eta(self) -> str:
        remaining = self._progress.tasks[0].time_remaining
        return "" if remaining is None else f"  ETA {int(remaining) // 60}:{int(remaining) % 60:02d}"


_SHOWN = (
    "loss",
    "images_per_second",
    "mask_level",
    "top1",
    "balanced_accuracy",
    "mse",
    "codes_used",
    "perplexity",
    "temperature",
)


def _close(opened: IO[str] | Curves, failed: bool) -> None:
    """Close a file; if the run has ``failed`` already, what still cannot be written then hides no earlier error."""
    with suppress(OSError, WriteError) if failed else nullcontext():
        opened.close()


def _lines_before(path: Path, step: int) -> list[str]:
    """An earlier attempt's lines of steps up to ``step``; a line cut off by a crash is dropped."""
    if step == 0 or not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    return kept
