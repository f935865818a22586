"""A page of questions and answers: images with what was asked, answered and right, and where the latents look.

Shapes: H x W pixels of an image, K latents, (h, w) patches of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.analysis.draw import draw_heat, draw_heat_bar
from ehm.analysis.mosaic import ColourBar, Tile, compose_mosaic, wrap_caption
from ehm.analysis.tiles import choose_cell, enlarge_image

__all__ = ["PicturedAnswer", "draw_answers_page"]

_TILE = 300
"""Pixels across of an image, about."""
_COLUMNS = 4
_MOST_LATENTS = 8
"""Latents that are drawn: more would not fit on the page."""


@dataclass(frozen=True)
class PicturedAnswer:
    """An answer with its ``image`` (H, W, 3) uint8, all images of a page being of one size.

    ``truth`` is "" if it is not published, and ``blank``, the answer to a blank image, None if that was not asked.
    ``looks`` (K, h, w) are where each latent looks, from 0 to 1; None if there is nothing to show of it.
    """

    image: NDArray[np.uint8]
    question: str
    given: str
    truth: str = ""
    blank: str | None = None
    looks: NDArray[np.floating] | None = None


def draw_answers_page(answers: Sequence[PicturedAnswer], title: str, notes: Sequence[str] = ()) -> Image.Image:
    """Draw ``answers`` side by side; or, if they say where the latents look, a row for each with that beside it."""
    looks = answers[0].looks
    if looks is None:
        tiles = [_make_tile(_fit_image(answer.image), answer) for answer in answers]
        columns = min(_COLUMNS, len(tiles))
        rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
        empty = Tile(np.full_like(tiles[0].picture, 255))
        rows[-1] += [empty] * (columns - len(rows[-1]))
        return compose_mosaic(title, notes, [""] * columns, rows)
    latents = min(len(looks), _MOST_LATENTS)
    headings = ["image", *(f"latent {number}" for number in range(1, latents + 1))]
    rows = [_draw_looks(answer, latents) for answer in answers]
    return compose_mosaic(title, notes, headings, rows, ColourBar(draw_heat_bar(), "unseen", "looked at most"))


def _draw_looks(answer: PicturedAnswer, latents: int) -> list[Tile]:
    """Return the tile of an image and those of what its first ``latents`` look at."""
    assert answer.looks is not None
    grid = answer.looks.shape[1:]
    cell = choose_cell((grid[0], grid[1]), _TILE)
    picture = enlarge_image(answer.image, (grid[0], grid[1]), cell)
    tiles = [_make_tile(picture, answer)]
    for weights in answer.looks[:latents]:
        tiles.append(Tile(draw_heat(picture, weights)))
    return tiles


def _make_tile(picture: NDArray[np.uint8], answer: PicturedAnswer) -> Tile:
    width = picture.shape[1]
    lines = [*wrap_caption(answer.question, width), *wrap_caption(f"answer: {answer.given or 'nothing'}", width)]
    if answer.truth:
        lines += wrap_caption(f"truth: {answer.truth}", width)
    if answer.blank is not None:
        lines += wrap_caption(f"of a blank image: {answer.blank or 'nothing'}", width)
    return Tile(picture, tuple(lines))


def _fit_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize an image so that it is as wide as a tile."""
    height = max(1, round(image.shape[0] * _TILE / image.shape[1]))
    return np.asarray(Image.fromarray(image).resize((_TILE, height), Image.Resampling.LANCZOS))
