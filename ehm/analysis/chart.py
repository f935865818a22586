"""Lines over the layers of networks, as one picture: the one plot that is needed, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ehm.analysis.colours import PALETTE
from ehm.analysis.mosaic import FAINT, GAP, INK, MARGIN, TEXT, TITLE, _fit, _font, _line, _wrap

__all__ = ["Line", "chart", "place"]

WIDTH, PLOT = 1200, 620
_LEFT = MARGIN + 110
_GREY = (225, 225, 225)


@dataclass(frozen=True)
class Line:
    """A line through ``values`` (K,), one for each layer from ``first`` on, and fainter dots ``around`` it (K, n)."""

    name: str
    values: NDArray[np.float64]
    around: NDArray[np.float64] | None = None
    first: int = 1


def chart(title: str, notes: Sequence[str], lines: Sequence[Line], across: str, up: str) -> Image.Image:
    """Draw ``lines`` under ``title`` and over their names and ``notes``; ``across`` and ``up`` name the axes.

    The upward axis begins with 0.
    """
    top = MARGIN + _line(TITLE) + 2 * GAP + _line(TEXT)
    note_lines = [line for note in notes for line in _wrap(note, TEXT, WIDTH - 2 * MARGIN)]
    below = top + PLOT + 2 * _line(TEXT) + GAP
    page = Image.new("RGB", (WIDTH, below + (len(lines) + len(note_lines)) * _line(TEXT) + GAP + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), _fit(title, TITLE, WIDTH - 2 * MARGIN), INK, _font(TITLE))
    pen.text((MARGIN, top - _line(TEXT) - GAP), up, FAINT, _font(TEXT))

    xs, ys, step = _axes(lines)
    for tick in np.arange(0, ys[1] + step / 2, step).tolist():
        _, y = place((xs[0], tick), xs, ys, top)
        pen.line([(_LEFT, y), (WIDTH - MARGIN, y)], _GREY)
        pen.text((_LEFT - 12, y), f"{tick:.4g}", FAINT, _font(TEXT), anchor="rm")
    for layer in range(xs[0], xs[1] + 1, max(1, math.ceil((xs[1] - xs[0]) / 24))):
        x, y = place((layer, 0), xs, ys, top)
        pen.text((x, y + 8), str(layer), FAINT, _font(TEXT), anchor="mt")
    pen.text((WIDTH - MARGIN, top + PLOT + _line(TEXT) + 8), across, FAINT, _font(TEXT), anchor="rt")

    for number, line in enumerate(lines):
        colour = _colour(number)
        layers = range(line.first, line.first + len(line.values))
        if line.around is not None:
            pale = tuple((part + 2 * 255) // 3 for part in colour)
            for layer, values in zip(layers, line.around, strict=True):
                for value in values.tolist():
                    _dot(pen, place((layer, value), xs, ys, top), 3, pale)
        points = [place((layer, value), xs, ys, top) for layer, value in zip(layers, line.values.tolist(), strict=True)]
        pen.line(points, colour, 3)
        for point in points:
            _dot(pen, point, 5, colour)
        height = below + number * _line(TEXT)
        pen.line([(MARGIN, height + TEXT // 2 + 3), (MARGIN + 40, height + TEXT // 2 + 3)], colour, 5)
        pen.text((MARGIN + 54, height), _fit(line.name, TEXT, WIDTH - 2 * MARGIN - 54), INK, _font(TEXT))
    for number, text in enumerate(note_lines):
        at = below + len(lines) * _line(TEXT) + GAP + number * _line(TEXT)
        pen.text((MARGIN, at), text, FAINT, _font(TEXT))
    return page


def place(
    point: tuple[float, float], across: tuple[int, int], up: tuple[float, float], top: int
) -> tuple[float, float]:
    """Pixels (x, y) of a layer and a value, where these go from ``across[0]`` to ``[1]`` and ``up[0]`` to ``[1]``."""
    width = WIDTH - MARGIN - 20 - _LEFT - 20
    x = _LEFT + 20 + width * (point[0] - across[0]) / max(1, across[1] - across[0])
    return x, top + PLOT * (1 - (point[1] - up[0]) / (up[1] - up[0]))


def _axes(lines: Sequence[Line]) -> tuple[tuple[int, int], tuple[float, float], float]:
    """First and last layer, smallest and largest value, and the step of ticks: 1, 2 or 5 times a power of ten."""
    first = min(line.first for line in lines)
    last = max(line.first + len(line.values) - 1 for line in lines)
    highest = max(float(np.max(line.values if line.around is None else line.around)) for line in lines)
    highest = max(highest, *(float(line.values.max()) for line in lines), 1e-30)
    rough = highest / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return (first, last), (0.0, step * math.ceil(highest / step)), step


def _colour(number: int) -> tuple[int, ...]:
    return tuple(PALETTE[(4, 5, 2, 6, 0, 7, 8, 1, 9, 3)[number % 10]].tolist())


def _dot(pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: int, colour: tuple[int, ...]) -> None:
    pen.ellipse([at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], colour)
