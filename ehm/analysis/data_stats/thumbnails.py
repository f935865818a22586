"""A page of thumbnails of the images of a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.analysis.data_stats.image_facts import ImageFacts
from ehm.analysis.mosaic import Tile, compose_mosaic
from ehm.config.pixel_format import PixelFormat
from ehm.data.colour_view import ColourView, choose_view

__all__ = ["MOST_THUMBNAILS", "draw_thumbnails"]

MOST_THUMBNAILS = 24
_COLUMNS = 6
_SIDE = 200


def draw_thumbnails(source: str, facts: Sequence[ImageFacts], pixels: PixelFormat) -> Image.Image:
    """Draw the images of ``facts`` that have a thumbnail, row by row, with their names and sizes."""
    shown = [each for each in facts if each.thumbnail is not None]
    notes = ["Images are spread evenly over the source."]
    view: ColourView | None = None
    if not pixels.is_rgb:
        # one view for all images, so that their colours can be compared
        all_pixels = np.concatenate([_get_thumbnail(each).reshape(-1, pixels.count) for each in shown])
        view = choose_view(all_pixels, pixels)
        notes.append(view.describe())
    tiles = []
    for each in shown:
        values = _get_thumbnail(each)
        picture = values.astype(np.uint8) if view is None else view.show(values)
        # with the folder, which may be the class
        name = "/".join(Path(each.name).parts[-2:])
        tiles.append(Tile(_centre_on_white(picture), (name, f"{each.size[1]} x {each.size[0]}")))
    columns = min(_COLUMNS, len(tiles))
    blank = Tile(np.full((_SIDE, _SIDE, 3), 255, np.uint8))
    tiles += [blank] * (-len(tiles) % columns)
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    return compose_mosaic(f"Images of {source}", notes, [""] * columns, rows)


def _get_thumbnail(facts: ImageFacts) -> NDArray[np.float32]:
    assert facts.thumbnail is not None
    return facts.thumbnail


def _centre_on_white(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture (h, w, 3) scaled to a square tile with a white border, in its own proportions."""
    height, width = picture.shape[:2]
    scale = _SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # nearest, so that the single pixels of a small image can be seen
    resized = Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)
    tile = Image.new("RGB", (_SIDE, _SIDE), "white")
    tile.paste(resized, ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
    return np.asarray(tile)
