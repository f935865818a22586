"""Pictures of one image, pixel by pixel, on grids small enough to write down."""

import numpy as np
import pytest

from ehm.analysis import draw

CELL = 16
FLAT = np.full((2 * CELL, 3 * CELL, 3), 100, np.uint8)
PARTS = np.array([[7, 7, 9], [7, 9, 9]])
COLOURS = np.zeros((10, 3), np.uint8)
COLOURS[7], COLOURS[9] = (200, 0, 0), (0, 0, 200)


def pixels(shape):
    return [(row, column) for row in range(shape[0]) for column in range(shape[1])]


@pytest.mark.parametrize(("cell", "before", "after"), [(5, 0, 1), (16, 1, 1), (24, 1, 2), (80, 2, 2)])
def test_border_is_as_wide_as_it_says_and_between_parts_alone(cell, before, after):
    labels = PARTS.repeat(cell, 0).repeat(cell, 1)
    found = draw.find_borders(PARTS, cell)
    assert found.shape == labels.shape
    for row, column in pixels(labels.shape):
        around = labels[max(0, row - before) : row + after + 1, max(0, column - before) : column + after + 1]
        assert found[row, column] == bool((around != labels[row, column]).any())


def test_partition_has_one_colour_a_part_and_contours_on_borders_alone():
    picture = draw.draw_partition(FLAT, PARTS, COLOURS)
    labels = draw.enlarge_patches(PARTS, CELL)
    contour = draw.find_borders(PARTS, CELL)
    assert contour.any()
    assert (picture[contour] == draw.CONTOUR).all()
    inside = {part: np.unique(picture[(labels == part) & ~contour], axis=0) for part in (7, 9)}
    assert all(len(colours) == 1 for colours in inside.values())
    red, blue = inside[7][0], inside[9][0]
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_single_patches_are_paler_than_parts():
    parts = np.array([[0, 0, 1], [0, 0, 0]])
    picture = draw.draw_partition(FLAT, parts, np.array([(200, 0, 0), (200, 0, 0)], np.uint8))
    spread = np.ptp(picture.astype(int), axis=-1)
    assert 0 < spread[CELL // 2, 2 * CELL + CELL // 2] < spread[CELL // 2, CELL // 2]


def test_masked_patches_are_grey_and_visible_ones_untouched():
    image = np.random.default_rng(0).integers(0, 100, FLAT.shape, np.uint8)
    mask = np.array([[True, False, False], [True, True, False]])
    picture = draw.draw_mask(image, mask)
    hidden = draw.enlarge_patches(mask, CELL)
    edge = draw.find_borders(mask, CELL)
    assert (picture[~hidden & ~edge] == image[~hidden & ~edge]).all()
    assert (picture[hidden & ~edge] == draw.HIDDEN).all()
    assert (picture[edge] == draw.CONTOUR).all()


@pytest.mark.parametrize("patch", [(0, 0), (1, 2), (1, 1)])
def test_box_frames_the_patch_and_nothing_else(patch):
    picture = draw.draw_box(FLAT, patch, CELL, (1, 2, 3))
    line = CELL // 8
    top, left = patch[0] * CELL, patch[1] * CELL
    for row, column in pixels(FLAT.shape[:2]):
        away = max(top - row, row - (top + CELL - 1), left - column, column - (left + CELL - 1))
        expected = 100 if away <= 0 or away > line + 1 else 0 if away == line + 1 else (1, 2, 3)
        assert (picture[row, column] == expected).all(), (row, column)
    assert (FLAT == 100).all()


def test_attention_is_brighter_where_weights_are_higher():
    weights = np.array([[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]])
    picture = draw.draw_attention(FLAT, weights, (1, 2), (255, 255, 255))
    centres = picture[CELL // 2 :: CELL, CELL // 2 :: CELL].astype(float) @ (0.299, 0.587, 0.114)
    assert (np.diff(centres.ravel()) > 0).all()
    assert (picture[CELL - 1, 2 * CELL + CELL // 2] == 255).all()
