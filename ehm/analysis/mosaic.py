"""A page of pictures: tiles in rows and columns, with a title, headings and captions.

Pages are drawn with Pillow and not with matplotlib, which would resample the pixels of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["ColourBar", "Tile", "compose_mosaic", "wrap_caption"]

MARGIN = 28
"""White pixels around the page."""
GAP = 16
"""Pixels between two tiles, and between two blocks of the page."""
_CAPTION_GAP = 6

_TITLE_SIZE = 30
_HEADING_SIZE = 22
_TEXT_SIZE = 18
_INK = (20, 20, 20)
_FAINT = (90, 90, 90)


@dataclass(frozen=True)
class Tile:
    """A picture (H, W, 3) uint8 and the lines of its caption."""

    picture: NDArray[np.uint8]
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class ColourBar:
    """A strip of colours (H, W, 3) and the meaning of its left and its right end."""

    picture: NDArray[np.uint8]
    low: str
    high: str


def compose_mosaic(
    title: str,
    notes: Sequence[str],
    headings: Sequence[str],
    rows: Sequence[Sequence[Tile]],
    bar: ColourBar | None = None,
) -> Image.Image:
    """Lay out ``rows`` of tiles, one heading a column, under ``title`` and over ``bar`` and ``notes``.

    All tiles have the size of the first one. Notes and title are wrapped to the width of the page.
    """
    tile_height, tile_width = rows[0][0].picture.shape[:2]
    page_width = 2 * MARGIN + len(headings) * (tile_width + GAP) - GAP
    text_width = page_width - 2 * MARGIN
    caption_lines = max(len(tile.lines) for row in rows for tile in row)
    row_height = tile_height + _CAPTION_GAP + caption_lines * _compute_line_height(_TEXT_SIZE) + GAP

    title_lines = _wrap_text(title, _TITLE_SIZE, text_width)
    note_lines: list[str] = []
    for note in notes:
        note_lines += _wrap_text(note, _TEXT_SIZE, text_width)

    headings_top = MARGIN + len(title_lines) * _compute_line_height(_TITLE_SIZE) + GAP
    rows_top = headings_top + _compute_line_height(_HEADING_SIZE) + 4
    bar_top = rows_top + len(rows) * row_height
    notes_top = bar_top
    if bar is not None:
        notes_top += _compute_line_height(_TEXT_SIZE) + GAP
    page_height = notes_top + len(note_lines) * _compute_line_height(_TEXT_SIZE) + MARGIN

    page = Image.new("RGB", (page_width, page_height), "white")
    pen = ImageDraw.Draw(page)
    _write_lines(pen, title_lines, MARGIN, _TITLE_SIZE, _INK)
    for column, heading in enumerate(headings):
        left = MARGIN + column * (tile_width + GAP)
        shortened = _shorten_text(heading, _HEADING_SIZE, tile_width)
        pen.text((left, headings_top), shortened, _INK, _load_font(_HEADING_SIZE))
        for index, row in enumerate(rows):
            _paste_tile(page, pen, row[column], left, rows_top + index * row_height)
    if bar is not None:
        _paste_bar(page, pen, bar, bar_top)
    _write_lines(pen, note_lines, notes_top, _TEXT_SIZE, _FAINT)
    return page


def wrap_caption(text: str, width: int) -> tuple[str, ...]:
    """Return ``text`` as the lines below a tile of ``width`` pixels."""
    return tuple(_wrap_text(text, _TEXT_SIZE, width))


def _paste_tile(page: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    height, width = tile.picture.shape[:2]
    page.paste(Image.fromarray(tile.picture), (left, top))
    for number, line in enumerate(tile.lines):
        line_top = top + height + _CAPTION_GAP + number * _compute_line_height(_TEXT_SIZE)
        ink = _INK if number == 0 else _FAINT
        pen.text((left, line_top), _shorten_text(line, _TEXT_SIZE, width), ink, _load_font(_TEXT_SIZE))


def _paste_bar(page: Image.Image, pen: ImageDraw.ImageDraw, bar: ColourBar, top: int) -> None:
    left = MARGIN + round(_load_font(_TEXT_SIZE).getlength(bar.low)) + 10
    pen.text((MARGIN, top), bar.low, _INK, _load_font(_TEXT_SIZE))
    page.paste(Image.fromarray(bar.picture), (left, top))
    pen.text((left + bar.picture.shape[1] + 10, top), bar.high, _INK, _load_font(_TEXT_SIZE))


def _write_lines(
    pen: ImageDraw.ImageDraw, lines: Sequence[str], top: int, size: int, ink: tuple[int, int, int]
) -> None:
    for number, line in enumerate(lines):
        pen.text((MARGIN, top + number * _compute_line_height(size)), line, ink, _load_font(size))


@lru_cache  # wrapping and shortening ask for a font for every word
def _load_font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _compute_line_height(size: int) -> int:
    return round(size * 1.35)  # leaves room for descenders and accents


def _shorten_text(text: str, size: int, width: int) -> str:
    """Return ``text``, with "…" for its middle if it is wider than ``width`` pixels."""
    shortened = text
    kept = len(text)
    while _load_font(size).getlength(shortened) > width and kept > 2:
        kept -= 1
        beginning = kept // 2
        ending = kept - beginning
        shortened = text[:beginning] + "…" + text[len(text) - ending :]
    return shortened


def _wrap_text(text: str, size: int, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _load_font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
