"""The geometry of a line chart, which the template ``chart.svg`` draws.

Positions are in units of the chart's view box, with x to the right and y down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ehm.report.axis import Axis, fit_axis
from ehm.report.curves import Curve
from ehm.report.numbers import SHARE, Unit, format_number, format_value

__all__ = ["Chart", "Line", "Tick", "draw_chart", "thin_out"]

_WIDTH = 360
_HEIGHT = 190
_TOP = 14
_BOTTOM = 30
_TICK_LETTER = 6.6
"""Width of a letter in the text of ticks, at most."""
_LABEL_LETTER = 7.2
"""Width of a letter in labels, which are bold, at most."""
_MOST_POINTS = 300
"""Points of a line, at most: about one for each unit of width."""
_FEW_POINTS = 30
"""Lines with no more points than this have a mark at each of them."""
_LEAST_PERCENT = 10.0
"""The shortest axis of shares, in percent."""
_LABEL_DISTANCE = 15.0
"""The shortest distance between the labels of two lines."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, at ``place`` on the page."""

    place: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line of a chart: its ``name``, an SVG ``path``, and the ``text`` at its end.

    ``style`` is the number of its colour, from 1. ``points`` are the positions of marks, and ``readings`` the texts of
    all points.
    """

    style: int
    name: str
    path: str
    end: tuple[float, float]
    text: str
    text_y: float
    points: tuple[tuple[float, float], ...]
    readings: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """A chart; ``summary`` describes it in words, for readers who cannot see it."""

    title: str
    meaning: str
    summary: str
    width: int
    height: int
    x_axis: Axis
    y_axis: Axis
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_label: str
    lines: tuple[Line, ...]


def draw_chart(
    title: str,
    meaning: str,
    curves: Sequence[tuple[str, Curve]],
    steps_per_epoch: int | None,
    unit: Unit,
    from_zero: bool = False,
) -> Chart:
    """Return the chart of labelled ``curves``, each with at least one finite value.

    The horizontal axis has epochs, or steps if ``steps_per_epoch`` is None.
    """
    scale = steps_per_epoch or 1
    x_label = "epoch" if steps_per_epoch else "step"
    finite = [(label, curve.finite) for label, curve in curves]
    texts = _label_lines(finite, unit)
    values = [value * unit.factor for _, curve in finite for value in curve.values]
    if unit is SHARE:
        values += _widen_percent(values)
    positions = [step / scale for _, curve in finite for step in curve.steps]

    y_axis = fit_axis(values, _HEIGHT - _BOTTOM, _TOP, 4, from_zero=from_zero, exact=False)
    y_texts = [y_axis.format_tick(tick) + unit.suffix for tick in y_axis.ticks]
    left = 14 + _TICK_LETTER * max(map(len, y_texts))
    # room for the labels of lines, and for the label of the axis below them
    right = _WIDTH - 12 - _LABEL_LETTER * max(map(len, [*texts, x_label]))
    x_axis = fit_axis([0.0, *positions], left, right, 5, from_zero=True, exact=True)

    ends = []
    for _, curve in finite:
        ends.append((x_axis.place(curve.steps[-1] / scale), y_axis.place(curve.values[-1] * unit.factor)))
    label_heights = _spread_labels([y for _, y in ends])
    lines = []
    for number, (label, curve) in enumerate(curves):
        thinned = thin_out(curve, _MOST_POINTS)
        path, points, readings = _trace_curve(thinned, x_axis, y_axis, scale, x_label, unit)
        if len(points) > _FEW_POINTS:
            points = ()
        style = number + 1
        lines.append(Line(style, label, path, ends[number], texts[number], label_heights[number], points, readings))
    return Chart(
        title=title,
        meaning=meaning,
        summary=_summarise(title, finite, scale, x_label, unit),
        width=_WIDTH,
        height=_HEIGHT,
        x_axis=x_axis,
        y_axis=y_axis,
        x_ticks=tuple(Tick(x_axis.place(tick), x_axis.format_tick(tick)) for tick in x_axis.ticks),
        y_ticks=tuple(Tick(y_axis.place(tick), text) for tick, text in zip(y_axis.ticks, y_texts, strict=True)),
        x_label=x_label,
        lines=tuple(lines),
    )


def _widen_percent(values: Sequence[float]) -> list[float]:
    """Return two values that make an axis of ``values`` in percent at least ``_LEAST_PERCENT`` long; none if it is.

    On a shorter axis, small differences of an accuracy, which are noise, would look like a fall. The two are in
    [0, 100].
    """
    low = min(values)
    high = max(values)
    if high - low >= _LEAST_PERCENT:
        return []
    half = _LEAST_PERCENT / 2
    middle = min(max((low + high) / 2, half), 100 - half)
    return [middle - half, middle + half]


def thin_out(curve: Curve, most: int) -> Curve:
    """Return about ``most`` points of ``curve``: the lowest and the highest of each interval, so that peaks remain."""
    count = len(curve.steps)
    if count <= most:
        return curve
    stretches = most // 2
    kept = {0, count - 1}
    for stretch in range(stretches):
        indices = range(stretch * count // stretches, (stretch + 1) * count // stretches)
        finite = [index for index in indices if math.isfinite(curve.values[index])]
        # values that are not finite are kept, because they are drawn as gaps
        kept |= set(indices) - set(finite)
        if finite:
            kept |= {min(finite, key=curve.values.__getitem__), max(finite, key=curve.values.__getitem__)}
    chosen = sorted(kept)
    return Curve(tuple(curve.steps[index] for index in chosen), tuple(curve.values[index] for index in chosen))


def _trace_curve(
    curve: Curve, x_axis: Axis, y_axis: Axis, scale: int, x_label: str, unit: Unit
) -> tuple[str, tuple[tuple[float, float], ...], tuple[str, ...]]:
    """Return the SVG path through the points of ``curve``, the points, and the text of each."""
    path = ""
    points = []
    readings = []
    is_gap = True
    for step, value in zip(curve.steps, curve.values, strict=True):
        if not math.isfinite(value):
            is_gap = True
            continue
        x = x_axis.place(step / scale)
        y = y_axis.place(value * unit.factor)
        path += f"{'M' if is_gap else 'L'}{x:.2f},{y:.2f}"
        is_gap = False
        points.append((x, y))
        readings.append(f"{x_label} {format_number(step / scale)}: {format_value(value, unit)}")
    return path, tuple(points), tuple(readings)


def _label_lines(curves: Sequence[tuple[str, Curve]], unit: Unit) -> list[str]:
    """Return the labels at the ends of lines: the last value, after the name of the line if there are several."""
    texts = []
    for label, curve in curves:
        value = format_value(curve.values[-1], unit)
        texts.append(value if len(curves) == 1 else f"{label} {value}")
    return texts


def _spread_labels(places: Sequence[float]) -> list[float]:
    """Return the vertical positions of labels, each moved up until it does not overlap the one below it."""
    spread = list(places)
    lowest_first = sorted(range(len(places)), key=lambda index: -places[index])
    below = math.inf
    for index in lowest_first:
        spread[index] = min(spread[index], below - _LABEL_DISTANCE)
        below = spread[index]
    # if this moves the highest one beyond the upper border, all are moved down together
    overflow = max(0.0, _TOP - below) if places else 0.0
    return [place + overflow for place in spread]


def _summarise(title: str, curves: Sequence[tuple[str, Curve]], scale: int, x_label: str, unit: Unit) -> str:
    """Return a sentence with the first, last, lowest and highest value of each curve."""
    parts = []
    for label, curve in curves:
        name = f"{label}: " if len(curves) > 1 else ""
        extremes = []
        for word, choose in (("lowest", min), ("highest", max)):
            index = choose(range(len(curve.values)), key=curve.values.__getitem__)
            place = format_number(curve.steps[index] / scale)
            extremes.append(f"{word} {format_value(curve.values[index], unit)} ({x_label} {place})")
        first = format_value(curve.values[0], unit)
        last = format_value(curve.values[-1], unit)
        parts.append(f"{name}from {first} to {last}, {', '.join(extremes)}")
    return f"{title}, {'; '.join(parts)}."
