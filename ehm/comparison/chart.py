"""The chart of a comparison: figures on the left and differences on the right, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ehm.analysis.colours import PALETTE
from ehm.comparison.statistics import Interval
from ehm.comparison.table import ComparisonTable
from ehm.storage.names import escape_undecodable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_comparison"]

_WIDTH = 12.0
_INCHES_A_ROW = 0.32
_INCHES_A_PANEL = 1.1
_DPI = 100
_BLUE = PALETTE[4] / 255
_SHOWN = PALETTE[2] / 255
_NOT_SHOWN = "0.6"
_LONGEST_NAME = 48
_MOST_TICKS = 6


def draw_comparison(table: ComparisonTable) -> Figure:
    """Draw two panels for each measure: figures on the left, and on the right differences, coloured if shown.

    The result can be changed further, and saved in every format of matplotlib.
    """
    # Figure, not pyplot: pyplot keeps every figure alive and looks for a display.
    from matplotlib.figure import Figure

    rows = max(len(table.rows), len(table.differences))
    height = len(table.measures) * (_INCHES_A_PANEL + _INCHES_A_ROW * rows) + 0.6
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    panels = figure.subplots(len(table.measures), 2, squeeze=False)
    for (left, right), (key, heading) in zip(panels, table.measures.items(), strict=True):
        names = [row.name for row in table.rows if key in row.figures]
        figures = [row.figures[key] for row in table.rows if key in row.figures]
        _draw_intervals(left, names, figures, [_BLUE] * len(figures))
        left.set_xlabel(f"{heading}: {table.figure_words}")
        pairs = [each for each in table.differences if key in each.figures]
        names = [f"{each.name} - {each.against}" for each in pairs]
        figures = [each.figures[key] for each in pairs]
        _draw_intervals(right, names, figures, [_SHOWN if each.is_shown else _NOT_SHOWN for each in figures])
        right.axvline(0, color="0.3", linewidth=0.8)
        right.set_xlabel(f"{heading}: difference; coloured if it is shown")
    title = figure.suptitle(f"95 % intervals {table.chance}", x=0.01, ha="left", fontsize=12)
    title.set_parse_math(False)
    return figure


def _draw_intervals(axes: Axes, names: Sequence[str], intervals: Sequence[Interval], colours: Sequence[object]) -> None:
    """Draw a dot with its interval for each name, the first one on top."""
    for place, (interval, colour) in enumerate(zip(intervals, colours, strict=True)):
        axes.errorbar(interval.mean, place, xerr=interval.half or 0, fmt="o", color=colour, capsize=3, markersize=5)
    axes.set_yticks(range(len(names)), [_shorten(escape_undecodable(name)) for name in names])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a dollar sign in the name of a file is no formula
    axes.margins(y=0.2)
    axes.locator_params(axis="x", nbins=_MOST_TICKS)
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _shorten(name: str) -> str:
    """Cut the beginning of ``name`` off if it is too long: the names of runs differ at their ends."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"…{name[-_LONGEST_NAME + 1 :]}"
