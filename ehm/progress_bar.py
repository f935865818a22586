"""Progress bars: rich's on a terminal, HTML in a notebook, none in a log.

A bar in a notebook is an output of the cell that is drawn again as the work goes on. It needs IPython, which every
notebook has, but no widgets, so that it also stays in the saved file as it was at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from html import escape
from types import TracebackType
from typing import Any, TypeVar

from rich.progress import Progress, ProgressColumn, Task, TaskID

from ehm.console import PlainConsole, console, is_notebook

__all__ = ["create_progress", "is_progress_shown", "track"]

T = TypeVar("T")

_SECONDS_BETWEEN_DRAWINGS = 0.25
"""A notebook keeps every message that the browser has not shown yet."""
_BAR_STYLE = "width: min(20rem, 100%); vertical-align: middle; accent-color: #005f9e"
_LINE_STYLE = "display: flex; flex-wrap: wrap; gap: 0 0.75rem; align-items: center; font: 13px/1.6 sans-serif"


def is_progress_shown(printer: PlainConsole = console) -> bool:
    """Return True on a terminal and in a notebook: elsewhere, lines have to say how far the work is."""
    return printer.is_terminal or is_notebook()


def create_progress(
    *columns: ProgressColumn | str, printer: PlainConsole = console, transient: bool = False, hidden: bool = False
) -> Progress:
    """Return a progress display with these columns of rich, which is drawn if `is_progress_shown`.

    ``transient`` ones disappear at their end. In a notebook the columns are left out: the bar stands there with the
    counts, the time, and the task's fields that are texts.
    """
    if is_notebook() and not hidden:
        return _NotebookProgress(printer, transient)
    return Progress(*columns, console=printer, transient=transient, disable=hidden or not printer.is_terminal)


def track(values: Iterable[T], title: str, total: int, *, transient: bool = False, hidden: bool = False) -> Iterator[T]:
    """Yield ``values``, of which there are ``total``, with a bar named ``title`` if `is_progress_shown`."""
    with create_progress(*Progress.get_default_columns(), transient=transient, hidden=hidden) as progress:
        yield from progress.track(values, total=total, description=title)


class _NotebookProgress(Progress):
    """A progress display of rich that draws HTML into an output of the notebook's cell."""

    def __init__(self, printer: PlainConsole, transient: bool) -> None:
        # disabled, as what rich itself draws in a notebook needs widgets; without a thread, as the output of one could
        # land in a later cell
        super().__init__(console=printer, disable=True, auto_refresh=False)
        self._is_transient = transient
        self._output: Any = None
        self.is_stopped = False
        self._has_failed = False
        self._drawn = -math.inf

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_failed = error is not None
        self.stop()

    def start(self) -> None:
        from IPython.display import display

        self._output = display(_Drawing(self), display_id=True)

    def stop(self) -> None:
        if self._output is not None and not self.is_stopped:
            self.is_stopped = True
            self._draw()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._draw_if_due()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._draw_if_due()

    def refresh(self) -> None:
        # rich calls this after every step of `track`
        self._draw_if_due()

    def _draw_if_due(self) -> None:
        is_running = self._output is not None and not self.is_stopped
        if is_running and time.monotonic() - self._drawn >= _SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._output.update(_Drawing(self))

    def list_shown(self) -> list[Task]:
        """Return the tasks whose bars are drawn."""
        if self.is_stopped and self._is_transient and not self._has_failed:
            return []
        return [task for task in self.tasks if task.visible]


class _Drawing:
    """The bars as an output of a cell: a display of rich would be drawn as text with colours, by rich itself."""

    def __init__(self, progress: _NotebookProgress) -> None:
        self._progress = progress

    def __repr__(self) -> str:
        """Return the bars as text, for a program that shows no HTML."""
        is_stopped = self._progress.is_stopped
        return "\n".join("  ".join(_describe_task(task, is_stopped)) for task in self._progress.list_shown())

    def _repr_html_(self) -> str:
        is_stopped = self._progress.is_stopped
        return "".join(_draw_task(task, is_stopped) for task in self._progress.list_shown())


def _draw_task(task: Task, is_stopped: bool) -> str:
    """Return the bar of a task as HTML; of one without a known total it is a bar that only moves."""
    value = "" if task.total is None else f' value="{task.completed:g}" max="{max(task.total, 1):g}"'
    title, *texts = (escape(text) for text in _describe_task(task, is_stopped))
    bar = f'<progress aria-label="{title}" style="{_BAR_STYLE}"{value}></progress>'
    spans = "".join(f"<span>{text}</span>" for text in texts)
    return f'<div style="{_LINE_STYLE}"><strong>{title}</strong>{bar}{spans}</div>'


def _describe_task(task: Task, is_stopped: bool) -> list[str]:
    """Return the title of a task, its counts, its time, and its fields."""
    texts = [task.description]
    if task.total is not None:
        texts.append(f"{task.completed:,.0f} of {task.total:,.0f}")
    if is_stopped and task.total is not None and task.completed < task.total:
        texts.append("stopped")
    if task.elapsed is not None:
        texts.append(_format_time(task.elapsed))
    if not is_stopped and task.time_remaining:
        texts.append(f"ETA {_format_time(task.time_remaining)}")
    return texts + [text for text in task.fields.values() if isinstance(text, str) and text]


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
