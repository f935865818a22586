"""Masks made of hierarchies: properties for any tree, ratio and level, and their distributions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from ehm.masking import Hierarchy, build_hierarchy, hierarchical_mask, masking_level, random_mask
from ehm.masking.masks import draw_ranks

fractions = st.floats(0, 1)
ratios = st.floats(0, 1, exclude_min=True, exclude_max=True)


@st.composite
def hierarchies(draw):
    """Balanced trees, chains and ties of 2 to 40 patches, three at a time."""
    n = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.random((3, n, n)) ** draw(st.sampled_from([1, 4]))
    if draw(st.booleans()):
        values += 3 * rng.random((3, n, 1))  # hubs
    if draw(st.booleans()):
        values = np.round(values, 1)
    return build_hierarchy(values + values.transpose(0, 2, 1))


def below(hierarchy, b):
    """Leaves below each node of one tree, by going up from every leaf."""
    leaves = [set() for _ in range(hierarchy.parent.shape[1])]
    for leaf in range(hierarchy.patches):
        node = leaf
        while node >= 0:
            leaves[node].add(leaf)
            node = hierarchy.parent[b, node]
    return leaves


def is_start_of_a_walk(hierarchy, b, leaves, node, masked):
    """Return whether ``masked`` can be the first leaves of a depth-first walk from ``node``, for some order."""
    inside = leaves[node] & masked
    if not inside or inside == leaves[node]:
        return True
    first, second = np.flatnonzero(hierarchy.parent[b] == node)
    if leaves[first] <= masked:
        return is_start_of_a_walk(hierarchy, b, leaves, second, masked)
    if leaves[second] <= masked:
        return is_start_of_a_walk(hierarchy, b, leaves, first, masked)
    if not leaves[first] & masked:
        return is_start_of_a_walk(hierarchy, b, leaves, second, masked)
    return not leaves[second] & masked and is_start_of_a_walk(hierarchy, b, leaves, first, masked)


@settings(max_examples=150, deadline=None)
@given(hierarchies(), fractions, ratios, st.integers(0, 2**32 - 1))
def test_masks_are_parts_and_the_start_of_a_walk_through_one_more(hierarchy, progress, ratio, seed):
    mask = hierarchical_mask(hierarchy, progress, ratio, np.random.default_rng(seed))
    assert mask.dtype == np.bool_
    assert mask.shape == (3, hierarchy.patches)
    assert (mask.sum(axis=1) == round(ratio * hierarchy.patches)).all()
    cut = hierarchy.cut(masking_level(progress, hierarchy.height))
    for b in range(3):
        leaves, masked = below(hierarchy, b), set(np.flatnonzero(mask[b]))
        partial = [node for node in np.unique(cut[b]) if leaves[node] & masked and not leaves[node] <= masked]
        assert len(partial) <= 1
        assert all(is_start_of_a_walk(hierarchy, b, leaves, node, masked) for node in partial)


@settings(max_examples=50, deadline=None)
@given(hierarchies(), st.integers(1, 40), st.integers(1, 40))
def test_partitions_grow_coarser_with_the_level(hierarchy, first, second):
    fine, coarse = hierarchy.cut(min(first, second)), hierarchy.cut(max(first, second))
    for b in range(3):
        for part in np.unique(fine[b]):
            assert len(np.unique(coarse[b, fine[b] == part])) == 1


@settings(max_examples=30, deadline=None)
@given(hierarchies(), fractions, ratios, st.integers(0, 2**32 - 1))
def test_equal_seeds_give_equal_masks(hierarchy, progress, ratio, seed):
    first, second = (hierarchical_mask(hierarchy, progress, ratio, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_images_and_calls_get_different_masks():
    hierarchy = build_hierarchy(np.full((2, 100, 100), 0.5))
    rng = np.random.default_rng(0)
    first, second = hierarchical_mask(hierarchy, 0, 0.5, rng), hierarchical_mask(hierarchy, 0, 0.5, rng)
    assert (first[0] != first[1]).any()
    assert (first != second).any()


def renumbered(hierarchy, rng):
    """The same trees, their nodes merged in another order: any in which parts come before their whole."""
    n, nodes = hierarchy.patches, hierarchy.parent.shape[1]
    fields = [array.copy() for array in vars(hierarchy).values()]
    for b, parent in enumerate(hierarchy.parent):
        moment = np.zeros(nodes)
        for v in range(nodes - 1):
            moment[parent[v]] = max(moment[parent[v]], moment[v] + rng.random())
        number = np.arange(nodes)
        number[n + np.argsort(moment[n:])] = np.arange(n, nodes)
        for array in fields:
            array[b, number] = array[b].copy()
        fields[0][b] = np.where(fields[0][b] >= 0, number[fields[0][b]], -1)
    return Hierarchy(*fields)


@settings(max_examples=30, deadline=None)
@given(hierarchies(), fractions, ratios, st.integers(0, 2**32 - 1))
def test_masks_follow_from_the_shape_of_the_trees(hierarchy, progress, ratio, seed):
    rng = np.random.default_rng(seed)
    ranks = draw_ranks(rng, 3, hierarchy.patches)
    first, second = (
        hierarchical_mask(tree, progress, ratio, ranks=ranks) for tree in (hierarchy, renumbered(hierarchy, rng))
    )
    np.testing.assert_array_equal(first, second)


def test_ranks_are_all_the_randomness_of_a_mask():
    rng, again = np.random.default_rng(4), np.random.default_rng(4)
    mask = hierarchical_mask(pairs(5), 0.5, 0.4, rng)
    np.testing.assert_array_equal(mask, hierarchical_mask(pairs(5), 0.5, 0.4, ranks=draw_ranks(again, 5, 8)))
    assert rng.bit_generator.state == again.bit_generator.state


def test_the_ranks_of_an_image_are_drawn_from_its_own_numbers():
    whole = draw_ranks(np.random.default_rng(6), 7, 9)
    rng = np.random.default_rng(6)
    rng.bit_generator.advance(3 * 17)
    np.testing.assert_array_equal(draw_ranks(rng, 4, 9), whole[3:])


def test_every_order_of_ranks_is_as_likely_as_any_other():
    ranks = draw_ranks(np.random.default_rng(8), 24_000, 2)  # three nodes, six orders
    assert ranks.dtype == np.int32
    orders = list(itertools.permutations(range(3)))
    assert chisquare([(ranks == order).all(axis=1).sum() for order in orders]).pvalue > 1e-3
    assert (np.sort(draw_ranks(np.random.default_rng(8), 3, 196)) == np.arange(391)).all()


def subsets(mask):
    """Count how often each set of masked patches occurs."""
    n, count = mask.shape[1], mask[0].sum()
    names = {combination: i for i, combination in enumerate(itertools.combinations(range(n), count))}
    return np.bincount([names[tuple(np.flatnonzero(row))] for row in mask], minlength=len(names))


@pytest.mark.parametrize("seed", range(3))
def test_level_one_is_random_masking(seed):
    values = np.random.default_rng(seed).random((6, 6))
    batch = np.broadcast_to(values + values.T, (6000, 6, 6))
    rng = np.random.default_rng(seed)
    for mask in (hierarchical_mask(build_hierarchy(batch), 0, 0.5, rng), random_mask(6000, (2, 3), 0.5, rng)):
        assert chisquare(subsets(mask)).pvalue > 1e-3  # every one of the 20 sets is as likely as any other


def pairs(batch):
    """Patches 0 1, 2 3, 4 5 and 6 7 are pairs; the first two pairs and the last two are halves."""
    similarity = np.full((8, 8), 0.1)
    similarity[:4, :4] = similarity[4:, 4:] = 0.4
    for i in range(0, 8, 2):
        similarity[i : i + 2, i : i + 2] = 0.9
    return build_hierarchy(np.broadcast_to(similarity, (batch, 8, 8)))


def test_parts_are_equally_likely():
    hierarchy = pairs(4000)
    assert hierarchy.height[0] == 4
    mask = hierarchical_mask(hierarchy, 0.5, 0.5, np.random.default_rng(1))  # level 2: two of four pairs
    assert (mask[:, ::2] == mask[:, 1::2]).all()
    assert chisquare(subsets(mask[:, ::2])).pvalue > 1e-3


def test_truncation_walks_into_either_child_alike():
    mask = hierarchical_mask(pairs(4000), 1, 3 / 8, np.random.default_rng(2))  # of a half: a pair and one of the other
    half = mask[:, :4].sum(axis=1) // 3
    assert set(mask[:, :4].sum(axis=1)) == {0, 3}
    counts = subsets(np.where(half[:, None] == 1, mask[:, :4], mask[:, 4:]))
    assert chisquare(counts).pvalue > 1e-3
    assert chisquare(np.bincount(half)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("progress", "ratio", "message"),
    [
        (-0.1, 0.5, "progress must be in .* not -0.1"),
        (1.1, 0.5, "progress must be in .* not 1.1"),
        (np.nan, 0.5, "progress must be in .* not nan"),
        (0.5, 0, "ratio must be in .* not 0"),
        (0.5, 1, "ratio must be in .* not 1"),
        (0.5, np.nan, "ratio must be in .* not nan"),
    ],
)
def test_bad_arguments_are_named(progress, ratio, message):
    with pytest.raises(ValueError, match=message):
        hierarchical_mask(pairs(1), progress, ratio, np.random.default_rng(0))


def test_ranks_that_do_not_fit_are_refused():
    ranks = draw_ranks(np.random.default_rng(0), 2, 8)
    with pytest.raises(ValueError, match=r"ranks must have shape \(1, 15\), not \(2, 15\)"):
        hierarchical_mask(pairs(1), 0.5, 0.5, ranks=ranks)
    for arguments in ({}, {"rng": np.random.default_rng(0), "ranks": ranks}):
        with pytest.raises(ValueError, match="either rng or ranks must be given"):
            hierarchical_mask(pairs(2), 0.5, 0.5, **arguments)
    with pytest.raises(ValueError, match="batch and patches must be at least 1, not 0 and 4"):
        draw_ranks(np.random.default_rng(0), 0, 4)
