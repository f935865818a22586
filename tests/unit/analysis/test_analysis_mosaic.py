"""The layout: every tile whole, no caption across its column."""

import numpy as np
import pytest

from ehm.analysis.mosaic import GAP, MARGIN, ColourBar, Tile, compose_mosaic


def tiles(rows, columns, lines=("a line",), side=80):
    def tile(row, column):
        return Tile(np.full((side, side, 3), (200, 10 * row, 10 * column), np.uint8), lines)

    return [[tile(row, column) for column in range(columns)] for row in range(rows)]


def places(page, tile):
    """Top left corners of regions of the tile's colour."""
    found = (page == tile.picture[0, 0]).all(-1)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    return rows[0], columns[0], found.sum()


@pytest.mark.parametrize("columns", [2, 6])
def test_every_tile_stands_whole_in_its_row_and_column(columns):
    rows = tiles(3, columns)
    page = np.asarray(compose_mosaic("Title", ["a note"], [f"heading {n}" for n in range(columns)], rows))
    corners = np.array([[places(page, tile)[:2] for tile in row] for row in rows])
    assert all(places(page, tile)[2] == 80 * 80 for row in rows for tile in row)
    assert (corners[:, :, 1] == MARGIN + np.arange(columns) * (80 + GAP)).all()
    assert (np.diff(corners[:, :, 0], axis=0) > 80).all()
    assert (np.ptp(corners[:, :, 0], axis=1) == 0).all()


def test_long_captions_and_headings_stay_inside_their_column():
    long = "a_very_long_file_name_of_a_photograph_of_a_solar_cell_0001.png"
    page = np.asarray(compose_mosaic("T", [], [long, long], tiles(2, 2, (long, long))))
    gap = page[MARGIN + 50 :, MARGIN + 80 : MARGIN + 80 + GAP]
    assert (gap == 255).all()
    assert (page[:, -MARGIN + 1 :] == 255).all()


def test_notes_are_wrapped_to_the_width_and_lengthen_the_page():
    short = compose_mosaic("T", ["word"], ["a", "b", "c"], tiles(1, 3))
    long = compose_mosaic("T", ["word " * 60], ["a", "b", "c"], tiles(1, 3))
    assert long.width == short.width
    assert long.height > short.height
    assert (np.asarray(long)[:, -MARGIN + 1 :] == 255).all()


def test_the_colour_bar_is_shown():
    bar = np.zeros((20, 100, 3), np.uint8)
    bar[..., 1] = 201
    page = np.asarray(compose_mosaic("T", [], ["a", "b"], tiles(1, 2), ColourBar(bar, "low", "high")))
    assert (page == (0, 201, 0)).all(-1).sum() == 20 * 100
