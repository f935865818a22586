"""Random, grid, block and large-block masks."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ehm.masking import block_mask, grid_mask, large_block_mask, multi_block_mask, random_mask

ALL = [random_mask, grid_mask, block_mask, large_block_mask, multi_block_mask]


@pytest.mark.parametrize("draw", ALL)
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    ratio=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_image_masks_exactly_the_count(draw, batch, grid, ratio, seed):
    mask = draw(batch, grid, ratio, np.random.default_rng(seed))
    assert mask.shape == (batch, grid[0] * grid[1])
    assert mask.dtype == np.bool_
    assert (mask.sum(axis=1) == round(ratio * (grid[0] * grid[1]))).all()
    np.testing.assert_array_equal(mask, draw(batch, grid, ratio, np.random.default_rng(seed)))


@pytest.mark.parametrize("draw", ALL)
def test_images_differ_and_no_patch_is_spared(draw):
    ratio = 0.25 if draw is large_block_mask else 0.75  # a block of three quarters always holds the middle
    mask = draw(500, (14, 14), ratio, np.random.default_rng(0))
    assert len(np.unique(mask, axis=0)) > 1
    assert mask.any(axis=0).all()
    assert not mask.all(axis=0).any()


@pytest.mark.parametrize(
    ("ratio", "grid", "steps", "kept"),
    [(0.75, (14, 14), (2, 2), True), (0.5, (8, 8), (1, 2), True), (8 / 9, (12, 9), (3, 3), True),
     (0.25, (14, 14), (2, 2), False), (0.75, (8, 20), (2, 2), True)],
)  # fmt: skip
def test_a_lattice_stays_visible(ratio, grid, steps, kept):
    mask = grid_mask(200, grid, ratio, np.random.default_rng(1)).reshape(200, *grid)
    phases = set()
    for image in mask:
        rows, columns = np.nonzero(image != kept)
        assert len(set(rows % steps[0])) == len(set(columns % steps[1])) == 1
        phases.add((rows[0] % steps[0], columns[0] % steps[1]))
    assert len(phases) == steps[0] * steps[1]


def beit(height, width, target, rng):
    """Algorithm 1 of Bao et al. (2021) as published: one image, rectangle by rectangle."""
    mask = np.zeros((height, width), int)
    masked = 0
    while masked < target:
        missing, added = target - masked, 0
        for _ in range(10):
            area = rng.uniform(16, missing)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < width and h < height:
                top, left = rng.randint(0, height - h), rng.randint(0, width - w)
                fresh = h * w - mask[top : top + h, left : left + w].sum()
                if 0 < fresh <= missing:
                    mask[top : top + h, left : left + w] = 1
                    added = fresh
                    break
        if not added:
            break
        masked += added
    return mask.astype(bool)


def edges(mask):
    """Borders between masked and visible patches, of each image."""
    return (mask[:, 1:] != mask[:, :-1]).sum(axis=(1, 2)) + (mask[:, :, 1:] != mask[:, :, :-1]).sum(axis=(1, 2))


@pytest.mark.parametrize("ratio", [0.4, 0.75])
def test_blocks_are_those_of_beit(ratio):
    target = round(ratio * 196)
    rng = random.Random(0)
    theirs = np.stack([beit(14, 14, target, rng) for _ in range(600)])
    ours = block_mask(600, (14, 14), ratio, np.random.default_rng(0)).reshape(-1, 14, 14)
    # where a patch lies decides how often it is masked: more in the middle
    middle = np.s_[:, 5:9, 5:9]
    assert ours[middle].mean() == pytest.approx(theirs[middle].mean(), abs=0.04)
    assert ours[:, 0].mean() == pytest.approx(theirs[:, 0].mean(), abs=0.04)
    # the exact count costs a few patches at the borders; random masks have 146 (0.75) and 175 (0.4) edges
    assert edges(ours).mean() == pytest.approx(edges(theirs).mean(), rel=0.15)


def largest_rectangle(image):
    """Area of the largest rectangle of masked patches, by trying all of them."""
    height, width = image.shape
    areas = [
        (bottom - top) * (right - left)
        for top, bottom in itertools.combinations(range(height + 1), 2)
        for left, right in itertools.combinations(range(width + 1), 2)
        if image[top:bottom, left:right].all()
    ]
    return max(areas, default=0)


@settings(max_examples=25, deadline=None)
@example(3, 4, 0.125, 2223326)  # two patches, of which a block three patches high would leave nothing but strays
@given(st.integers(2, 12), st.integers(2, 12), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_a_large_block_is_one_rectangle_and_less_than_a_side_beside_it(height, width, ratio, seed):
    mask = large_block_mask(3, (height, width), ratio, np.random.default_rng(seed)).reshape(3, height, width)
    for image in mask:
        missing = image.sum() - largest_rectangle(image)
        sides = np.ptp(np.nonzero(image), axis=1) + 1 if image.any() else [1]
        assert missing < max(sides)
        assert ndimage.label(image)[1] == image.any()


def test_large_blocks_have_beits_shapes_and_lie_anywhere():
    mask = large_block_mask(4000, (20, 20), 0.25, np.random.default_rng(3)).reshape(-1, 20, 20)
    tall, wide = mask.any(axis=2).sum(axis=1), mask.any(axis=1).sum(axis=1)
    assert (tall - 2 <= np.sqrt(100 / 0.3) + 1).all()  # a patch beside the block may lie on each side of it
    assert (tall + 2 >= np.sqrt(100 * 0.3) - 1).all()
    assert np.log(tall / wide).mean() == pytest.approx(0, abs=0.05)
    assert np.log(tall / wide).std() == pytest.approx(np.log(1 / 0.3) / np.sqrt(3), rel=0.15)  # uniform
    assert mask[:, 0].any(axis=1).mean() > 0.05
    assert mask[:, -1].any(axis=1).mean() == pytest.approx(mask[:, 0].any(axis=1).mean(), abs=0.03)


@pytest.mark.parametrize("draw", ALL)
@pytest.mark.parametrize(
    ("batch", "grid", "ratio", "message"),
    [
        (0, (4, 4), 0.5, "batch must be at least 1, not 0"),
        (1, (0, 4), 0.5, r"grid must be .* not \(0, 4\)"),
        (1, (4,), 0.5, r"grid must be .* not \(4,\)"),
        (1, (4, 4), 0.0, "ratio must be in .* not 0.0"),
        (1, (4, 4), 1.0, "ratio must be in .* not 1.0"),
        (1, (4, 4), -0.5, "ratio must be in .* not -0.5"),
        (1, (4, 4), math.nan, "ratio must be in .* not nan"),
    ],
)
def test_bad_arguments_are_named(draw, batch, grid, ratio, message):
    with pytest.raises(ValueError, match=message):
        draw(batch, grid, ratio, np.random.default_rng(0))


def test_small_grids_end():
    for grid in itertools.product(range(1, 7), repeat=2):
        for ratio in (0.05, 0.5, 0.95):
            block_mask(3, grid, ratio, np.random.default_rng(0))
            large_block_mask(3, grid, ratio, np.random.default_rng(0))
            multi_block_mask(3, grid, ratio, np.random.default_rng(0))


def ijepa_size(height, width, scale, aspects, rng):
    """The size of a block as in facebookresearch/ijepa, src/masks/multiblock.py."""
    area = int(height * width * rng.uniform(*scale))
    aspect = rng.uniform(*aspects)
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(h, height - 1), min(w, width - 1)


def ijepa(count, height, width, rng):
    """The targets of a batch of images, and its contexts before they are cut to the smallest: (B, h, w) each."""
    size = ijepa_size(height, width, (0.15, 0.2), (0.75, 1.5), rng)
    context_size = ijepa_size(height, width, (0.85, 1), (1, 1), rng)

    def place(size):
        top, left = rng.randint(0, height - size[0]), rng.randint(0, width - size[1])
        block = np.zeros((height, width), bool)
        block[top : top + size[0], left : left + size[1]] = True
        return block

    targets = np.stack([np.any([place(size) for _ in range(4)], axis=0) for _ in range(count)])
    contexts = np.stack([place(context_size) for _ in range(count)]) & ~targets
    return targets, contexts


def test_target_blocks_have_ijepas_sizes():
    sizes = set()
    for area in range(29, 40):  # 15 to 20 % of 196
        for aspect in np.linspace(0.75, 1.5, 200):
            sizes.add((round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))))
    found = set()
    for image in multi_block_mask(300, (14, 14), 0.25, np.random.default_rng(0)).reshape(-1, 14, 14):
        whole = set()
        for size in sizes:
            if np.lib.stride_tricks.sliding_window_view(image, size).all(axis=(2, 3)).any():
                whole.add(size)
        assert whole, image  # at least the first block is there as a whole
        found.add(max(whole))
    assert len(found) > 0.6 * len(sizes)


def test_a_first_block_lies_where_ijepa_places_it():
    rng = random.Random(0)
    theirs = np.zeros((4000, 196), bool)
    for row in theirs:
        h, w = ijepa_size(14, 14, (0.15, 0.2), (0.75, 1.5), rng)
        top, left = rng.randint(0, 14 - h), rng.randint(0, 14 - w)
        block = [14 * y + x for y in range(top, top + h) for x in range(left, left + w)]
        row[block[:25]] = True  # the published code cuts to the first patches, too
    ours = multi_block_mask(4000, (14, 14), 25 / 196, np.random.default_rng(0))
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=0.04)


def test_four_blocks_overlap_as_those_of_ijepa():
    rng = random.Random(0)
    theirs = np.concatenate([ijepa(16, 14, 14, rng)[0] for _ in range(100)])
    ours = multi_block_mask(1600, (14, 14), theirs.mean(), np.random.default_rng(0)).reshape(-1, 14, 14)
    # an exact count cuts large targets, and adds patches of the border, outside of the context, to small ones
    middle = np.s_[:, 5:9, 5:9]
    assert ours[middle].mean() == pytest.approx(theirs[middle].mean(), abs=0.08)
    assert edges(ours).mean() == pytest.approx(edges(theirs).mean(), rel=0.3)


def test_the_default_ratio_shows_as_much_as_ijepa_and_within_its_context():
    rng = random.Random(0)
    # the published code cuts the contexts of a batch to the smallest
    smallest = [ijepa(128, 14, 14, rng)[1].sum(axis=(1, 2)).min() for _ in range(10)]
    assert np.mean(smallest) / 196 == pytest.approx(0.25, abs=0.04)
    visible = ~multi_block_mask(500, (14, 14), 0.75, np.random.default_rng(0)).reshape(-1, 14, 14)
    # the context block is smaller than the grid on each side, unless the targets alone are nearly as many as the count
    sides = [np.ptp(np.flatnonzero(image.any(axis=axis))) + 1 for image in visible for axis in (0, 1)]
    assert np.mean([side <= 13 for side in sides]) > 0.98
