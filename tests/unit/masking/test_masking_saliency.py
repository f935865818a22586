"""AttMask and MST: exact counts for any saliency, and which patches they take."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from ehm.masking import attmask_high, attmask_hint, attmask_low, mst_mask

ALL = [attmask_high, attmask_hint, attmask_low, mst_mask]

every_mask = pytest.mark.parametrize("draw", ALL)
ratios = st.floats(0, 1, exclude_min=True, exclude_max=True)
seeds = st.integers(0, 2**32 - 1)


def saliency_of(n, rng, batch=3, ties=False):
    values = rng.random((batch, n), np.float32)
    return np.round(values, 1) if ties else values


@every_mask
@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), ties=st.booleans(), ratio=ratios, seed=seeds)
def test_every_image_masks_exactly_the_count(draw, n, ties, ratio, seed):
    saliency = saliency_of(n, np.random.default_rng(seed), ties=ties)
    mask = draw(saliency, ratio, np.random.default_rng(seed))
    assert mask.shape == (3, n)
    assert mask.dtype == np.bool_
    assert (mask.sum(axis=1) == round(ratio * n)).all()
    np.testing.assert_array_equal(mask, draw(saliency, ratio, np.random.default_rng(seed)))


@every_mask
@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 30), ratio=ratios, seed=seeds)
def test_an_image_takes_one_number_a_patch(draw, n, ratio, seed):
    """So the mask of an image depends on its own numbers alone."""
    saliency = saliency_of(n, np.random.default_rng(seed), ties=True)
    whole = draw(saliency, ratio, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    rng.bit_generator.advance(2 * n)
    np.testing.assert_array_equal(draw(saliency[2:], ratio, rng), whole[2:])
    after = np.random.default_rng(seed)
    after.random(3 * n)
    assert rng.random() == after.random()


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 60), ratio=ratios, seed=seeds)
def test_high_hides_what_is_attended_most_and_low_what_is_least(n, ratio, seed):
    rng = np.random.default_rng(seed)
    saliency = saliency_of(n, rng)
    for row, high, low in zip(
        saliency, attmask_high(saliency, ratio, rng), attmask_low(saliency, ratio, rng), strict=True
    ):
        ascending = sorted(range(n), key=row.__getitem__)
        count = round(ratio * n)
        assert set(np.flatnonzero(high)) == set(ascending[n - count :])
        assert set(np.flatnonzero(low)) == set(ascending[:count])


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 120), ratio=ratios, seed=seeds)
def test_hints_stay_among_the_most_attended(n, ratio, seed):
    rng = np.random.default_rng(seed)
    saliency = saliency_of(n, rng)
    for row, mask in zip(saliency, attmask_hint(saliency, ratio, rng), strict=True):
        descending = sorted(range(n), key=row.__getitem__, reverse=True)
        count = round(ratio * n)
        hints = min(round(0.1 * count), n - count)
        hidden = [patch for patch in descending if mask[patch]]
        shown = [patch for patch in descending[: count + hints] if not mask[patch]]
        assert len(shown) == hints
        assert set(shown) <= set(descending[: round(0.1 * n)])
        assert set(hidden) == set(descending[: count + hints]) - set(shown)


def test_every_choice_of_hints_is_as_likely():
    saliency = np.tile(np.arange(40, dtype=np.float32), (6000, 1))  # the four most attended are 36 to 39
    mask = attmask_hint(saliency, 0.5, np.random.default_rng(0))  # two hints of 20 hidden
    pairs = list(itertools.combinations(range(4), 2))
    counts = [sum((~mask[:, 36:]).nonzero()[1].reshape(-1, 2) @ [4, 1] == 4 * a + b) for a, b in pairs]
    assert sum(counts) == 6000
    assert chisquare(counts).pvalue > 1e-3


def test_where_few_patches_stay_visible_any_of_the_most_attended_may():
    saliency = np.tile(np.arange(50, dtype=np.float32), (5000, 1))
    mask = attmask_hint(saliency, 0.98, np.random.default_rng(0))  # one visible of the five most attended
    assert mask[:, :45].all()
    assert chisquare((~mask[:, 45:]).sum(axis=0)).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 60), ratio=ratios, seed=seeds)
def test_mst_spares_the_salient(n, ratio, seed):
    rng = np.random.default_rng(seed)
    saliency = saliency_of(n, rng)
    for row, mask in zip(saliency, mst_mask(saliency, ratio, rng), strict=True):
        visible = n - round(ratio * n)
        salient = sorted(range(n), key=row.__getitem__, reverse=True)[: -(-visible // 2)]
        assert not mask[salient].any()


def test_mst_draws_evenly_from_the_others():
    saliency = np.tile(np.array([5, 0, 3, 4, 1, 2], np.float32), (6000, 1))
    mask = mst_mask(saliency, 1 / 3, np.random.default_rng(1))  # two of the four least attended: 1, 2, 4, 5
    sets = list(itertools.combinations((1, 2, 4, 5), 2))
    counts = [sum(1 for row in mask if set(np.flatnonzero(row)) == set(chosen)) for chosen in sets]
    assert sum(counts) == 6000
    assert chisquare(counts).pvalue > 1e-3


@every_mask
def test_equal_attention_gives_random_masks(draw):
    mask = draw(np.full((6000, 6), 0.1, np.float32), 0.5, np.random.default_rng(2))
    sets = list(itertools.combinations(range(6), 3))
    counts = [sum(1 for row in mask if set(np.flatnonzero(row)) == set(chosen)) for chosen in sets]
    assert chisquare(counts).pvalue > 1e-3


@every_mask
@pytest.mark.parametrize(
    ("saliency", "ratio", "message"),
    [
        (np.ones(4), 0.5, r"saliency must have shape \(B, N\), .* not \(4,\)"),
        (np.ones((0, 4)), 0.5, r"not \(0, 4\)"),
        (np.array([[0.1, np.nan]]), 0.5, "saliency must be finite"),
        (np.array([[0.1, np.inf]]), 0.5, "saliency must be finite"),
        (np.ones((1, 4)), 1.0, "ratio must be in .* not 1.0"),
        (np.ones((1, 4)), 0.0, "ratio must be in .* not 0.0"),
    ],
)
def test_bad_arguments_are_named(draw, saliency, ratio, message):
    with pytest.raises(ValueError, match=message):
        draw(saliency, ratio, np.random.default_rng(0))
