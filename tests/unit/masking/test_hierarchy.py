"""Hierarchies against SciPy's average linkage and against the paper's loop written out."""

import itertools

import numpy as np
import pytest
from scipy.cluster.hierarchy import cophenet, is_monotonic, is_valid_linkage, linkage
from scipy.spatial.distance import squareform
from similarities import softmax, symmetric

from ehm.masking import build_hierarchy


def random_similarity(rng, n):
    return symmetric(rng.random((n, n)))


def untrained_attention(rng, n):
    """Nearly uniform, with patches that everybody attends to: the trees are long chains."""
    return symmetric(softmax(0.05 * rng.normal(size=(n, n)) + 0.3 * rng.normal(size=n)))


def trained_attention(rng, n):
    features = rng.normal(size=(n, 12))
    return symmetric(softmax(features @ features.T))


def image_patches(rng, n):
    """Closeness of patches of which many are alike to the last bit, as in a flat background."""
    values = np.where(rng.random(n) < 0.5, 0.25, rng.random(n))
    return np.exp(-np.abs(values[:, None] - values))


def ties(rng, n):
    return symmetric(rng.integers(0, 4, (n, n)) / 8)


def all_equal(rng, n):
    return np.full((n, n), 0.25)


KINDS = [random_similarity, untrained_attention, trained_attention, image_patches, ties, all_equal]


def scipy_linkage(similarity):
    distance = 1 - similarity.astype(np.float64)
    return linkage(squareform(distance, checks=False), method="average")


def by_the_paper(similarity):
    """Eq. 5-13 word for word: merge the two most similar roots, whose similarity is a mean over their leaves."""
    roots = {i: [i] for i in range(len(similarity))}
    merges = []
    while len(roots) > 1:
        value, a, b = max(
            (similarity[np.ix_(roots[a], roots[b])].mean(), a, b) for a, b in itertools.combinations(roots, 2)
        )
        merges.append((a, b, value))
        roots[len(similarity) + len(merges) - 1] = roots.pop(a) + roots.pop(b)
    return merges


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 4, 17, 49, 100, 196])
@pytest.mark.parametrize("kind", KINDS)
def test_trees_are_scipys(kind, n, dtype):
    rng = np.random.default_rng(n)
    batch = np.stack([kind(rng, n) for _ in range(3)]).astype(dtype)
    hierarchy = build_hierarchy(batch)
    for b in range(3):
        expected = scipy_linkage(batch[b])
        ours = hierarchy.linkage(b)
        np.testing.assert_array_equal(ours[:, [0, 1, 3]], expected[:, [0, 1, 3]])
        np.testing.assert_allclose(ours[:, 2], expected[:, 2], rtol=0, atol=1e-7)


def test_many_patches():
    batch = random_similarity(np.random.default_rng(0), 700)[None].astype(np.float32)
    np.testing.assert_array_equal(build_hierarchy(batch).linkage(0)[:, :2], scipy_linkage(batch[0])[:, :2])


@pytest.mark.parametrize("kind", [random_similarity, untrained_attention, trained_attention])
def test_trees_are_the_papers(kind):
    similarity = kind(np.random.default_rng(5), 24)
    hierarchy = build_hierarchy(similarity[None])
    for i, (a, b, value) in enumerate(by_the_paper(similarity)):
        assert hierarchy.parent[0, [a, b]].tolist() == [24 + i, 24 + i]
        assert hierarchy.similarity[0, 24 + i] == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize("kind", [ties, image_patches, all_equal])
def test_tied_merges_are_among_the_best(kind):
    similarity = kind(np.random.default_rng(2), 20)
    hierarchy = build_hierarchy(similarity[None])
    roots = {i: [i] for i in range(20)}
    for node in range(20, 39):
        best = max(similarity[np.ix_(roots[a], roots[b])].mean() for a, b in itertools.combinations(roots, 2))
        a, b = np.flatnonzero(hierarchy.parent[0] == node)
        merged = similarity[np.ix_(roots[a], roots[b])].mean()
        assert merged == pytest.approx(best, abs=1e-12)
        roots[node] = roots.pop(a) + roots.pop(b)


def test_fields():
    n = 30
    hierarchy = build_hierarchy(np.stack([kind(np.random.default_rng(1), n) for kind in KINDS]))
    shape = (len(KINDS), 2 * n - 1)
    for array, dtype in [
        (hierarchy.parent, np.int32),
        (hierarchy.level, np.int32),
        (hierarchy.size, np.int32),
        (hierarchy.similarity, np.float32),
    ]:
        assert array.shape == shape
        assert array.dtype == dtype
    assert hierarchy.patches == n
    assert np.isnan(hierarchy.similarity[:, :n]).all()
    assert (hierarchy.level[:, :n] == 1).all()
    assert (hierarchy.size[:, :n] == 1).all()
    assert (hierarchy.parent[:, -1] == -1).all()
    for b, node in itertools.product(range(shape[0]), range(n, shape[1])):
        children = np.flatnonzero(hierarchy.parent[b] == node)
        assert len(children) == 2
        assert (children < node).all()
        assert hierarchy.level[b, node] == 1 + hierarchy.level[b, children].max()
        assert hierarchy.size[b, node] == hierarchy.size[b, children].sum()
    np.testing.assert_array_equal(hierarchy.height, hierarchy.level[:, -1])
    assert (np.diff(hierarchy.similarity[:, n:], axis=1) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_linkage_is_accepted_by_scipy(kind):
    similarity = kind(np.random.default_rng(3), 40)
    matrix = build_hierarchy(similarity[None]).linkage(0)
    assert is_valid_linkage(matrix)
    assert is_monotonic(matrix)
    np.testing.assert_allclose(cophenet(matrix), cophenet(scipy_linkage(similarity)), atol=1e-6)


def climb(hierarchy, b, leaf, limit):
    node = leaf
    while hierarchy.parent[b, node] >= 0 and hierarchy.level[b, hierarchy.parent[b, node]] <= limit:
        node = hierarchy.parent[b, node]
    return node


def test_cut_names_the_highest_node_at_the_level():
    hierarchy = build_hierarchy(np.stack([kind(np.random.default_rng(4), 25) for kind in KINDS]))
    images = range(len(KINDS))
    for level in range(1, hierarchy.height.max() + 2):
        expected = [[climb(hierarchy, b, leaf, level) for leaf in range(25)] for b in images]
        part = hierarchy.cut(level)
        assert part.dtype == np.int32
        np.testing.assert_array_equal(part, expected)
        for b in images:
            np.testing.assert_array_equal(np.flatnonzero(hierarchy.parts(level)[b]), np.unique(part[b]))
    each = np.minimum(np.arange(len(KINDS)) + 1, hierarchy.height)
    np.testing.assert_array_equal(hierarchy.cut(each), [hierarchy.cut(level)[b] for b, level in enumerate(each)])
    np.testing.assert_array_equal(hierarchy.cut(1), np.tile(np.arange(25), (len(KINDS), 1)))
    np.testing.assert_array_equal(hierarchy.cut(hierarchy.height), np.full((len(KINDS), 25), 48))


@pytest.mark.parametrize("level", [0, [1, 0], [1, 2, 3], -1])
def test_cut_refuses_other_levels(level):
    hierarchy = build_hierarchy(np.ones((2, 3, 3)))
    with pytest.raises(ValueError, match="level must be"):
        hierarchy.cut(level)


def test_similarities_above_one_and_below_zero():
    similarity = 10 * random_similarity(np.random.default_rng(6), 50) - 5
    expected = linkage(squareform(5 - similarity, checks=False), method="average")
    hierarchy = build_hierarchy(similarity[None])
    np.testing.assert_array_equal(hierarchy.linkage(0)[:, :2], expected[:, :2])
    np.testing.assert_allclose(hierarchy.similarity[0, 50:], 5 - expected[:, 2], atol=1e-6)


def test_similarities_whose_sum_overflows_float32():
    ordinary = (1 + random_similarity(np.random.default_rng(9), 30)).astype(np.float32)
    large = ordinary * np.float32(2.0**127)  # a power of two, so that nothing is rounded
    np.testing.assert_array_equal(build_hierarchy(large[None]).parent, build_hierarchy(ordinary[None]).parent)


def test_rounding_errors_do_not_make_it_asymmetric():
    rng = np.random.default_rng(7)
    similarity = random_similarity(rng, 40)
    noisy = similarity + 1e-9 * rng.random((40, 40))
    np.testing.assert_array_equal(build_hierarchy(noisy[None]).parent, build_hierarchy(symmetric(noisy)[None]).parent)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_raw_attention_is_refused(n):
    for seed in range(30):
        raw = softmax(np.random.default_rng(seed).normal(size=(1, n, n)))
        with pytest.raises(ValueError, match="similarity must be symmetric"):
            build_hierarchy(raw)


def test_diagonal_means_nothing():
    similarity = random_similarity(np.random.default_rng(8), 30)
    expected = build_hierarchy(similarity[None]).parent
    np.fill_diagonal(similarity, 100)
    np.testing.assert_array_equal(build_hierarchy(similarity[None]).parent, expected)


def spoiled(value, where=(0, 1, 2)):
    similarity = np.full((2, 4, 4), 0.5)
    similarity[where] = similarity[where[0], where[2], where[1]] = value
    return similarity


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        (np.ones((4, 4)), r"shape \(B, N, N\), not \(4, 4\)"),
        (np.ones((2, 4, 5)), r"shape \(B, N, N\), not \(2, 4, 5\)"),
        (np.ones((0, 4, 4)), r"at least one image .* \(0, 4, 4\)"),
        (np.ones((2, 1, 1)), r"at least two patches; its shape is \(2, 1, 1\)"),
        (np.ones((2, 4, 4), complex), "real numbers, not complex128"),
        ("attention", "shape"),
        (spoiled(np.nan), r"similarity\[0, 1, 2\] is nan"),
        (spoiled(-np.nan, (1, 0, 3)), r"similarity\[1, 0, 3\] is nan"),
        (spoiled(np.inf), r"similarity\[0, 1, 2\] is inf"),
        (spoiled(-np.inf), r"similarity\[0, 1, 2\] is -inf"),
        (spoiled(np.nan, (1, 2, 2)), r"similarity\[1, 2, 2\] is nan"),
        (spoiled(1e200), r"similarity\[0, 1, 2\] is 1e\+200"),
    ],
)
def test_bad_input_is_named(similarity, message):
    with pytest.raises(ValueError, match=message):
        build_hierarchy(similarity)
