"""One picture out of many: tiles in rows and columns, with a title, headings and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Tile", "mosaic"]

MARGIN, GAP = 28, 16
TITLE, HEADING, TEXT = 30, 22, 18
INK, FAINT = (20, 20, 20), (90, 90, 90)


@dataclass(frozen=True)
class Tile:
    """A picture (H, W, 3) uint8 and the lines that stand below it."""

    picture: NDArray[np.uint8]
    lines: tuple[str, ...] = ()


def mosaic(
    title: str,
    notes: Sequence[str],
    headings: Sequence[str],
    rows: Sequence[Sequence[Tile]],
    legend: tuple[NDArray[np.uint8], str, str] | None = None,
) -> Image.Image:
    """Lay out ``rows`` of tiles, one heading a column, under ``title`` and over ``notes``, wrapped to the width.

    All tiles have the size of the first one. ``legend`` is a colour bar (H, W, 3) and what its two ends mean.
    """
    tile_height, tile_width = rows[0][0].picture.shape[:2]
    width = 2 * MARGIN + len(headings) * (tile_width + GAP) - GAP
    text_lines = max(len(tile.lines) for row in rows for tile in row)
    row_height = tile_height + 6 + text_lines * _line(TEXT) + GAP
    title_lines = _wrap(title, TITLE, width - 2 * MARGIN)
    note_lines = [line for note in notes for line in _wrap(note, TEXT, width - 2 * MARGIN)]
    top = MARGIN + len(title_lines) * _line(TITLE) + GAP
    first = top + _line(HEADING) + 4
    bottom = first + len(rows) * row_height
    height = bottom + (_line(TEXT) + GAP if legend else 0) + len(note_lines) * _line(TEXT) + MARGIN

    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(title_lines):
        pen.text((MARGIN, MARGIN + number * _line(TITLE)), line, INK, _font(TITLE))
    for column, heading in enumerate(headings):
        left = MARGIN + column * (tile_width + GAP)
        pen.text((left, top), _fit(heading, HEADING, tile_width), INK, _font(HEADING))
        for index, row in enumerate(rows):
            upper = first + index * row_height
            page.paste(Image.fromarray(row[column].picture), (left, upper))
            for number, line in enumerate(row[column].lines):
                at = (left, upper + tile_height + 6 + number * _line(TEXT))
                pen.text(at, _fit(line, TEXT, tile_width), INK if number == 0 else FAINT, _font(TEXT))
    if legend:
        bar, low, high = legend
        at = MARGIN + round(_font(TEXT).getlength(low)) + 10
        pen.text((MARGIN, bottom), low, INK, _font(TEXT))
        page.paste(Image.fromarray(bar), (at, bottom))
        pen.text((at + bar.shape[1] + 10, bottom), high, INK, _font(TEXT))
        bottom += _line(TEXT) + GAP
    for number, line in enumerate(note_lines):
        pen.text((MARGIN, bottom + number * _line(TEXT)), line, FAINT, _font(TEXT))
    return page


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _line(size: int) -> int:
    return round(size * 1.35)


def _fit(text: str, size: int, width: int) -> str:
    """``text``, its middle left out where it is wider than ``width`` pixels."""
    short, keep = text, len(text)
    while _font(size).getlength(short) > width and keep > 2:
        keep -= 1
        short = text[: keep // 2] + "…" + text[len(text) - (keep - keep // 2) :]
    return short


def _wrap(text: str, size: int, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
