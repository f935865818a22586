"""Evolved Part Masking: EM against its steps in float64, and masks of parts for any parts, ratio and progress."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import chisquare

from ehm.masking import em_parts, part_count, part_mask

fractions = st.floats(0, 1)
ratios = st.floats(0, 1, exclude_min=True, exclude_max=True)
seeds = st.integers(0, 2**32 - 1)


def test_parts_fall_from_forty_to_ten():
    assert [part_count(p, 196) for p in (0, 0.25, 0.5, 0.75, 1)] == [40, 32, 25, 17, 10]
    assert [part_count(p / 30, 196) for p in range(31)] == list(range(40, 9, -1))
    assert [part_count(p, 24) for p in (0, 0.5, 0.75, 1)] == [24, 24, 17, 10]
    for progress in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"progress must be in .* not {progress}"):
            part_count(progress, 196)


def kinds(kind):
    """Similarity by kind of patch, (N,) -> (N, N)."""
    return 0.1 + (kind[:, None] == kind)


def attention(batch, n, rng):
    features = rng.normal(size=(batch, n, 8))
    weights = softmax(features @ features.swapaxes(1, 2), axis=2)
    return ((weights + weights.swapaxes(1, 2)) / 2).astype(np.float32)


def reference(similarity, first):
    """EM for one image, centre by centre, in float64."""
    rows = similarity / np.linalg.norm(similarity, axis=1, keepdims=True)
    centres = rows[first]
    for _ in range(15):
        share = softmax([[400 * row @ centre for centre in centres] for row in rows], axis=1)
        centres = []
        for part in share.T:
            total = sum(weight * row for weight, row in zip(part, rows, strict=True))
            centres.append(total / np.linalg.norm(total))
    return np.argmax(rows @ np.array(centres).T, axis=1)


@pytest.mark.parametrize("parts", [1, 3, 7, 24])
def test_parts_are_those_of_em(parts):
    similarity = attention(6, 24, np.random.default_rng(parts))
    found = em_parts(similarity, parts, np.random.default_rng(5))
    assert found.dtype == np.int32
    first = np.random.default_rng(5).random((6, 24)).argsort(axis=1)[:, :parts]
    for b in range(6):
        np.testing.assert_array_equal(found[b], reference(similarity[b].astype(np.float64), first[b]))


def test_kinds_that_are_alike_become_parts():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 4, 60)
    found = em_parts(np.tile(kinds(kind), (40, 1, 1)), 4, rng)
    assert all(len(set(row[kind == k])) == 1 for row in found for k in range(4))
    assert len({tuple(row) for row in found}) > 1  # which number a part has depends on the start


def test_threads_and_batches_change_nothing():
    similarity = attention(9, 49, np.random.default_rng(1))
    whole = em_parts(similarity, 12, np.random.default_rng(2), threads=1)
    np.testing.assert_array_equal(whole, em_parts(similarity, 12, np.random.default_rng(2), threads=3))
    rng = np.random.default_rng(2)
    rng.bit_generator.advance(4 * 49)
    np.testing.assert_array_equal(whole[4:], em_parts(similarity[4:], 12, rng))


def test_a_patch_that_resembles_nothing_is_still_in_a_part():
    similarity = attention(2, 24, np.random.default_rng(3))
    similarity[0, 5] = similarity[0, :, 5] = 0
    found = em_parts(similarity, 6, np.random.default_rng(3))
    assert ((found >= 0) & (found < 6)).all()


@pytest.mark.parametrize("parts", [0, 25])
def test_bad_numbers_of_parts_are_named(parts):
    similarity = attention(1, 24, np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"parts must be from 1 to 24, the number of patches, not {parts}"):
        em_parts(similarity, parts, np.random.default_rng(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_similarities_that_are_not_finite_are_refused(value):
    similarity = attention(1, 24, np.random.default_rng(0))
    similarity[0, 1, 2] = value
    with pytest.raises(ValueError, match="similarity must be finite"):
        em_parts(similarity, 3, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"similarity must have shape \(B, N, N\)"):
        em_parts(similarity[0], 3, np.random.default_rng(0))


@st.composite
def partitions(draw):
    """A grid and parts of its patches, three images."""
    grid = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(seeds))
    n = grid[0] * grid[1]
    return grid, rng.integers(0, draw(st.integers(1, n)), (3, n)).astype(np.int32)


@settings(max_examples=100, deadline=None)
@given(partitions(), fractions, ratios, seeds)
def test_every_image_masks_exactly_the_count(partition, progress, ratio, seed):
    grid, part = partition
    mask = part_mask(part, grid, progress, ratio, np.random.default_rng(seed))
    assert mask.shape == part.shape
    assert mask.dtype == np.bool_
    assert (mask.sum(axis=1) == round(ratio * part.shape[1])).all()
    rng = np.random.default_rng(seed)
    rng.bit_generator.advance(2 * (2 * part.shape[1] + 4))
    np.testing.assert_array_equal(part_mask(part[2:], grid, progress, ratio, rng), mask[2:])


@settings(max_examples=100, deadline=None)
@given(partitions(), st.sampled_from([0, 1]) | st.floats(0.001, 0.999), ratios, seeds)
def test_patches_of_one_part_and_place_are_parted_once_at_most(partition, progress, ratio, seed):
    grid, part = partition
    mask = part_mask(part, grid, progress, ratio, np.random.default_rng(seed))
    row, column = np.divmod(np.arange(part.shape[1]), grid[1])
    place = row % 2 * 2 + column % 2
    groups = {0: lambda b: place, 1: lambda b: part[b]}.get(progress, lambda b: part[b] * 4 + place)
    for b in range(3):
        group = groups(b)
        partial = [g for g in np.unique(group) if 0 < mask[b, group == g].sum() < (group == g).sum()]
        assert len(partial) <= 1


def test_at_the_start_a_lattice_stays_visible():
    part = np.random.default_rng(0).integers(0, 40, (400, 196)).astype(np.int32)
    mask = part_mask(part, (14, 14), 0, 0.75, np.random.default_rng(0)).reshape(-1, 14, 14)
    phases = {(*np.nonzero(~image)[0][:1] % 2, *np.nonzero(~image)[1][:1] % 2) for image in mask}
    for image in mask:
        row, column = np.nonzero(~image)
        assert len(set(row % 2)) == len(set(column % 2)) == 1
    assert len(phases) == 4


def test_at_the_end_parts_come_in_any_order_and_the_last_is_filled_at_random():
    part = np.tile(np.repeat(np.arange(3, dtype=np.int32), 2), (6000, 1))  # pairs 0 1, 2 3, 4 5
    mask = part_mask(part, (2, 3), 1, 0.5, np.random.default_rng(1))  # a pair, and one patch of another
    sets = [
        tuple(sorted((2 * a, 2 * a + 1, 2 * b + c))) for a, b in itertools.permutations(range(3), 2) for c in (0, 1)
    ]
    counts = [sum(1 for row in mask if tuple(np.flatnonzero(row)) == chosen) for chosen in sets]
    assert sum(counts) == 6000
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("progress", [0.09, 0.49])
def test_in_between_the_orders_are_mixed_by_the_root_of_progress(progress):
    """The chance that the earlier of two patches is hidden first, against integration by sampling."""
    a = math.sqrt(progress)
    part = np.tile(np.array([0, 1], np.int32), (20_000, 1))
    rng, again = np.random.default_rng(7), np.random.default_rng(7)
    mask = part_mask(part, (1, 2), progress, 0.5, rng)
    numbers = again.random((20_000, 8))
    lattice = numbers[:, 4] < numbers[:, 5]  # which of the two the lattice alone would hide
    agree = (mask[:, 0] == lattice).mean()
    g, u = np.random.default_rng(8).random((2, 200_000, 2))
    score = (1 - a) * g + a * u
    assert agree == pytest.approx(((score[:, 0] < score[:, 1]) == (g[:, 0] < g[:, 1])).mean(), abs=0.01)


@pytest.mark.parametrize(
    ("grid", "progress", "ratio", "message"),
    [
        ((2, 4), 0.5, 0.5, "part must be of the 2 x 4 patches of the grid, not of 6"),
        ((2, 3), -0.1, 0.5, "progress must be in .* not -0.1"),
        ((2, 3), math.nan, 0.5, "progress must be in .* not nan"),
        ((2, 3), 0.5, 1.0, "ratio must be in .* not 1.0"),
    ],
)
def test_bad_arguments_are_named(grid, progress, ratio, message):
    with pytest.raises(ValueError, match=message):
        part_mask(np.zeros((1, 6), np.int32), grid, progress, ratio, np.random.default_rng(0))
