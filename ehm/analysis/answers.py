"""A page of images with questions, answers and right answers, and the attention of the resampler's latents.

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

_TILE_WIDTH = 300
"""The approximate width of an image on the page, in pixels."""
_COLUMNS = 4
_MOST_LATENTS = 8
"""Latents that are drawn, at most: more do not fit on the page."""


@dataclass(frozen=True)
class PicturedAnswer:
    """An answer about an ``image`` (H, W, 3) uint8; all images of a page have one size.

    ``given`` is the answer of the model. ``truth``, the right one, is "" if it is not published. ``blank`` is the
    answer of the model about a blank image, None if it was not asked. ``latent_attention`` (K, h, w) is the attention
    of each latent to the patches, in [0, 1]; None if it is not drawn.
    """

    image: NDArray[np.uint8]
    question: str
    given: str
    truth: str = ""
    blank: str | None = None
    latent_attention: NDArray[np.floating] | None = None


def draw_answers_page(answers: Sequence[PicturedAnswer], title: str, notes: Sequence[str] = ()) -> Image.Image:
    """Draw ``answers`` side by side; if they have ``latent_attention``, draw a row for each, with a map per latent."""
    attention = answers[0].latent_attention
    if attention is None:
        tiles = [_make_tile(_fit_image(answer.image), answer) for answer in answers]
        columns = min(_COLUMNS, len(tiles))
        rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
        empty = Tile(np.full_like(tiles[0].picture, 255))
        rows[-1] += [empty] * (columns - len(rows[-1]))
        return compose_mosaic(title, notes, [""] * columns, rows)
    latents = min(len(attention), _MOST_LATENTS)
    headings = ["image", *(f"latent {number}" for number in range(1, latents + 1))]
    rows = [_draw_latents(answer, latents) for answer in answers]
    return compose_mosaic(title, notes, headings, rows, ColourBar(draw_heat_bar(), "unseen", "looked at most"))


def _draw_latents(answer: PicturedAnswer, latents: int) -> list[Tile]:
    """Return the tile of an image, and a heat map of the attention of each of the first ``latents``."""
    assert answer.latent_attention is not None
    rows, columns = answer.latent_attention.shape[1:]
    cell = choose_cell((rows, columns), _TILE_WIDTH)
    picture = enlarge_image(answer.image, (rows, columns), cell)
    tiles = [_make_tile(picture, answer)]
    for weights in answer.latent_attention[:latents]:
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
    height = max(1, round(image.shape[0] * _TILE_WIDTH / image.shape[1]))
    return np.asarray(Image.fromarray(image).resize((_TILE_WIDTH, height), Image.Resampling.LANCZOS))
