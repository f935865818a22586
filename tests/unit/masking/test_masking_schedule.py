"""Depth schedules, balancing, and the maskers that a configuration names."""

import numpy as np
import pytest

from ehm.config import MaskConfig, TrainConfig
from ehm.masking import (
    attmask_high,
    attmask_hint,
    attmask_low,
    balance,
    build_hierarchy,
    depth,
    draw_ranks,
    em_parts,
    hierarchical_mask,
    make_masker,
    masking_level,
    mst_mask,
    part_mask,
    random_mask,
)
from ehm.masking.streams import MaskStreams


def test_levels_rise_with_progress():
    height = np.array([1, 5, 10, 196])
    np.testing.assert_array_equal(masking_level(0, height), [1, 1, 1, 1])
    np.testing.assert_array_equal(masking_level(0.2, height), [1, 1, 2, 40])
    np.testing.assert_array_equal(masking_level(0.21, height), [1, 2, 3, 42])
    np.testing.assert_array_equal(masking_level(1, height), height)


def test_levels_at_whole_steps_are_exact():
    for height in range(1, 200):
        progress = np.arange(height + 1) / height
        levels = [masking_level(p, np.array([height]))[0] for p in progress]
        assert levels == [1, *range(1, height + 1)]  # 7 / 25 * 25 is 7.000000000000001


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.25,), 0.25),
        ((0.25, "sqrt"), 0.5),
        ((0.25, "linear", (0.2, 0.6)), 0.3),
        ((0.25, "sqrt", (0.2, 0.6)), 0.4),
        ((0.9, 0.2), 0.2),
        ((0.9, 0.8, (0, 0.5)), 0.8),
        ((0, "linear", (0.1, 0.9)), 0.1),
        ((1, "linear", (0.1, 0.9)), 0.9),
    ],
)
def test_depth(arguments, expected):
    assert depth(*arguments) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5,), "progress .* 1.5"),
        ((-0.1,), "progress .* -0.1"),
        ((float("nan"),), "progress .* nan"),
        ((0.5, "cubic"), "schedule .* 'cubic'"),
        ((0.5, 1.5), "schedule .* 1.5"),
        ((0.5, "linear", (0.5, 0.2)), r"depth_range .* \(0.5, 0.2\)"),
        ((0.5, "linear", (0, 2)), r"depth_range .* \(0, 2\)"),
    ],
)
def test_bad_depths_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        depth(*arguments)


def attention(batch=5, n=36, hubs=1.0):
    rng = np.random.default_rng(0)
    values = np.exp(0.3 * rng.normal(size=(batch, n, n)) + hubs * rng.normal(size=(batch, 1, n)))
    values /= values.sum(axis=2, keepdims=True)
    return ((values + values.transpose(0, 2, 1)) / 2).astype(np.float32)


def test_balance_is_twenty_divisions():
    similarity = attention()
    expected = similarity.astype(np.float64)
    expected[:, range(36), range(36)] = 0
    for _ in range(20):
        rows, columns = expected.sum(axis=2, keepdims=True), expected.sum(axis=1, keepdims=True)
        expected = expected / np.sqrt(rows * columns)
    balanced = balance(similarity)
    assert balanced.dtype == np.float32
    np.testing.assert_allclose(balanced, expected, rtol=2e-5)
    np.testing.assert_array_equal(balanced, balanced.transpose(0, 2, 1))
    np.testing.assert_allclose(balanced.sum(axis=1), 1, rtol=1e-3)


def test_balance_turns_chains_into_trees():
    similarity = attention(hubs=1.5)
    assert build_hierarchy(balance(similarity)).height.mean() < 0.6 * build_hierarchy(similarity).height.mean()


def test_balance_leaves_a_patch_that_resembles_nothing():
    similarity = attention()
    similarity[0, 3] = similarity[0, :, 3] = 0
    balanced = balance(similarity)
    assert (balanced[0, 3] == 0).all()
    np.testing.assert_allclose(np.delete(balanced[0].sum(axis=0), 3), 1, rtol=1e-3)


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_balance_names_bad_values(value):
    similarity = attention()
    similarity[1, 2, 3] = similarity[1, 3, 2] = value
    with pytest.raises(ValueError, match="similarity must"):
        balance(similarity)


class Prepared:
    """``count`` images in which a model sees ``pieces``."""

    def __init__(self, count, *pieces):
        self.images = np.zeros((count, 2, 2, 3), np.uint8)
        self.pieces = pieces

    def compute_similarity(self):
        assert self.pieces[0].ndim == 3
        yield from self.pieces

    def compute_saliency(self):
        assert self.pieces[0].ndim == 2
        yield from self.pieces

    def compute_evolved_masks(self, depth, ranks):
        return (depth, ranks), {}


def streams(count, views=1, seed=3):
    """The streams that maskers draw from for the seed ``(seed,)``."""
    return MaskStreams((seed,), range(count), views)


STATIC = ["random", "grid", "block", "large_block", "ijepa"]
BY_CLASS_TOKEN = {
    "attmask_high": attmask_high, "attmask_hint": attmask_hint, "attmask_low": attmask_low, "mst": mst_mask
}  # fmt: skip


@pytest.mark.parametrize("masking", STATIC)
def test_static_maskers_need_no_similarity(masking):
    masker = make_masker(masking, MaskConfig(ratio=0.6), (6, 7))
    mask, stats = masker(Prepared(4), 0.5, (0,))
    assert mask.shape == (4, 42)
    assert (mask.sum(axis=1) == 25).all()
    assert stats == {}


@pytest.mark.parametrize("mode", ["none", "sinkhorn"])
@pytest.mark.parametrize(
    ("masking", "schedule", "depth_range", "at"),
    [("evolved", "linear", (0, 1), 0.36), ("evolved", "sqrt", (0, 0.5), 0.3), ("shallow", "sqrt", (0, 0.5), 0.2),
     ("deep", "linear", (0, 1), 0.8)],
)  # fmt: skip
def test_hierarchical_maskers(masking, schedule, depth_range, at, mode):
    similarity = attention()
    config = MaskConfig(ratio=0.75, schedule=schedule, depth_range=depth_range, balance=mode)
    masker = make_masker(masking, config, (6, 6))
    mask, stats = masker(Prepared(5, similarity[:2], similarity[2:]), 0.36, (3,))
    hierarchy = build_hierarchy(balance(similarity) if mode == "sinkhorn" else similarity)
    np.testing.assert_array_equal(mask, hierarchical_mask(hierarchy, at, 0.75, streams(5)))
    level = masking_level(at, hierarchy.height)
    counts = [np.unique(row, return_counts=True)[1] for row in hierarchy.cut(level)]
    assert stats == pytest.approx(
        {
            "mask_level": level.mean(),
            "tree_height": hierarchy.height.mean(),
            "parts": np.mean([len(c) for c in counts]),
            "largest_part": np.mean([c.max() / 36 for c in counts]),
        }
    )
    assert all(type(value) is float for value in stats.values())


def test_random_masker_is_random_masking():
    mask, _ = make_masker("random", MaskConfig(ratio=0.75), (4, 4))(Prepared(3), 0, (3,))
    np.testing.assert_array_equal(mask, random_mask(3, (4, 4), 0.75, streams(3)))


@pytest.mark.parametrize("masking", BY_CLASS_TOKEN)
def test_maskers_by_the_class_token(masking):
    saliency = attention()[:, 0]
    masker = make_masker(masking, MaskConfig(ratio=0.6, views=2), (6, 6))
    mask, stats = masker(Prepared(5, saliency[:2], saliency[2:]), 0.36, (3,))
    expected = BY_CLASS_TOKEN[masking](np.repeat(saliency, 2, axis=0), 0.6, streams(5, views=2))
    np.testing.assert_array_equal(mask, expected)
    assert stats == {}


@pytest.mark.parametrize("mode", ["none", "sinkhorn"])
def test_masker_by_parts(mode):
    similarity = attention()
    masker = make_masker("epm", MaskConfig(ratio=0.75, balance=mode), (6, 6))
    mask, stats = masker(Prepared(5, similarity[:2], similarity[2:]), 0.5, (3,))
    rng = streams(5)
    part = em_parts(balance(similarity) if mode == "sinkhorn" else similarity, 25, rng)
    np.testing.assert_array_equal(mask, part_mask(part, (6, 6), 0.5, 0.75, rng))
    counts = [np.unique(row, return_counts=True)[1] for row in part]
    assert stats == pytest.approx(
        {"parts": np.mean([len(c) for c in counts]), "largest_part": np.mean([c.max() / 36 for c in counts])}
    )
    assert all(type(value) is float for value in stats.values())


def test_maskers_name_what_is_wrong():
    known = "random, grid, block, large_block, ijepa, "
    known += "attmask_high, attmask_hint, attmask_low, mst, epm, evolved, shallow, deep"
    with pytest.raises(ValueError, match=f"masking must be one of {known}, not 'x'"):
        make_masker("x", MaskConfig(), (6, 6))
    for masking, sees, seen in (
        ("evolved", "similarity", attention()),
        ("epm", "similarity", attention()),
        ("mst", "saliency", attention()[:, 0]),
    ):
        masker = make_masker(masking, MaskConfig(), (6, 6))
        with pytest.raises(ValueError, match=f"{sees} must be of all 6 images, not of 5"):
            masker(Prepared(6, seen), 0, (0,))
        with pytest.raises(ValueError, match=rf"{sees} must be of 36 patches; its shape is \(5, .*16\)"):
            masker(Prepared(5, seen[..., :16]), 0, (0,))


def test_the_maskings_of_a_configuration_are_those_that_there_are():
    names = TrainConfig.model_fields["masking"].annotation.__args__
    with pytest.raises(ValueError, match=f"must be one of {', '.join(names)}, not"):
        make_masker("x", MaskConfig(), (6, 6))


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("masking", [*STATIC, *BY_CLASS_TOKEN, "epm", "evolved", "deep"])
def test_an_image_has_the_same_masks_however_many_processes_share_the_batch(masking, views):
    masker = make_masker(masking, MaskConfig(ratio=0.6, views=views), (6, 6))
    seen = attention()[:, 0] if masking in BY_CLASS_TOKEN else attention()
    whole, _ = masker(Prepared(5, seen), 0.4, (9,))
    shares = [(0, 2), (2, 3), (3, 5)]
    parts = [masker(Prepared(b - a, seen[a:b]), 0.4, (9,), first=a)[0] for a, b in shares]
    assert whole.shape == (5 * views, 36)
    different = 5 if masking in ("attmask_high", "attmask_low") else 5 * views  # these are the same in every view
    assert len(np.unique(whole, axis=0)) > different // 2
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_the_device_gets_the_numbers_that_the_host_would_use():
    masker = make_masker("shallow", MaskConfig(ratio=0.6), (6, 6), build="device")
    (at, ranks), _ = masker(Prepared(2), 0.4, (9,), first=3)
    assert at == 0.2
    np.testing.assert_array_equal(ranks[:, 0], draw_ranks(streams(5, seed=9), 5, 36)[3:])


def test_each_mask_has_a_stream_of_its_own():
    """Streams are NumPy's generators of the seed, the row and the view; slices continue where the whole has stopped."""
    numbers = MaskStreams((7, 5), range(2, 4), views=2).random((4, 3))
    expected = [np.random.default_rng([7, 5, row, view]).random(3) for row in (2, 3) for view in (0, 1)]
    np.testing.assert_array_equal(numbers, expected)
    whole = MaskStreams((7, 5), range(2, 4), views=2)
    whole.random((4, 1))
    np.testing.assert_array_equal(whole[1:2].random((1, 2)), numbers[1:2, 1:])
    with pytest.raises(ValueError, match="must begin with 4, the number of streams, not 3"):
        whole.random((3, 2))


def test_an_image_has_the_same_masks_whatever_the_other_images_are():
    """Maskings that draw until a mask is full must not take their neighbours' numbers."""
    for masking in STATIC:
        masker = make_masker(masking, MaskConfig(ratio=0.6, views=2), (12, 12))
        whole, _ = masker(Prepared(40), 0.5, (1,))
        alone, _ = masker(Prepared(1), 0.5, (1,), first=17)
        np.testing.assert_array_equal(whole[34:36], alone)
