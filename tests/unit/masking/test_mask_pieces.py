"""Masks that are made piece by piece: when they are made, what is left out, and weights that give none."""

import numpy as np
import pytest

from ehm.config import MaskConfig
from ehm.masking import make_masker
from ehm.masking.pieces import BatchMasks, MaskPiece
from ehm.masking.similarity import NotFiniteAttentionError


class Prepared:
    """Images whose similarity arrives in pieces; ``arrived`` counts them."""

    def __init__(self, *pieces):
        self.pieces = pieces
        self.images = np.zeros((sum(map(len, pieces)), 4, 4, 3), np.uint8)
        self.arrived = 0

    def compute_similarity(self):
        for piece in self.pieces:
            self.arrived += 1
            yield piece


def similarity(images, seed=0):
    values = np.random.default_rng(seed).random((images, 16, 16), dtype=np.float32)
    return values + values.swapaxes(1, 2)


def test_masks_are_made_when_they_are_asked_for():
    whole = similarity(5)
    masker = make_masker("deep", MaskConfig(ratio=0.5, views=2), (4, 4))
    expected, figures = masker(Prepared(whole), 0.5, (1,))
    prepared = Prepared(whole[:2], whole[2:3], whole[3:])
    masks = BatchMasks(masker.iterate_pieces(prepared, 0.5, (1,)), 10)
    assert len(masks) == 10
    assert prepared.arrived == 0
    np.testing.assert_array_equal(masks[:4], expected[:4])
    assert prepared.arrived == 1
    np.testing.assert_array_equal(masks[3:6], expected[3:6])
    assert prepared.arrived == 2
    np.testing.assert_array_equal(masks[1:3], expected[1:3])
    assert prepared.arrived == 2
    assert masks.read_figures() == pytest.approx(dict(figures))
    assert prepared.arrived == 3
    np.testing.assert_array_equal(masks.read_all(), expected)


def test_figures_that_a_piece_lacks_are_left_out():
    first = MaskPiece(np.zeros((2, 4), bool), {"parts": np.array([1.0, 3.0]), "largest_part": np.array([0.5, 0.5])})
    second = MaskPiece(np.zeros((1, 4), bool), {"parts": np.array([8.0])})
    assert BatchMasks(iter([first, second]), 3).read_figures() == {"parts": 4.0}


def test_pieces_that_are_too_few_or_too_many_are_refused_with_the_last_mask():
    masker = make_masker("evolved", MaskConfig(ratio=0.5), (4, 4))
    for surplus in (-1, 1):
        prepared = Prepared(similarity(3))
        prepared.images = np.zeros((3 - surplus, 4, 4, 3), np.uint8)
        masks = BatchMasks(masker.iterate_pieces(prepared, 0.5, (1,)), 3 - surplus)
        with pytest.raises(ValueError, match=f"must be of all {3 - surplus} images, not of 3"):
            masks.read_all()
    with pytest.raises(ValueError, match="not in steps of 2"):
        masks[::2]


@pytest.mark.parametrize("balance", ["none", "sinkhorn"])
@pytest.mark.parametrize("masking", ["evolved", "epm"])
def test_a_similarity_that_is_not_finite_is_told_from_a_wrong_one(masking, balance):
    masker = make_masker(masking, MaskConfig(ratio=0.5, balance=balance), (4, 4))
    broken = similarity(2)
    broken[1] = np.nan
    pieces = masker.iterate_pieces(Prepared(similarity(2), broken), 0.5, (1,))
    assert next(pieces).masks.sum() == 16
    with pytest.raises(NotFiniteAttentionError, match="finite"):
        next(pieces)
    with pytest.raises(ValueError, match="must") as caught:
        masker(Prepared(-similarity(2)[:, :, :15]), 0.5, (1,))
    assert not isinstance(caught.value, NotFiniteAttentionError)


def test_a_saliency_that_is_not_finite_is_told_too():
    masker = make_masker("mst", MaskConfig(ratio=0.5), (4, 4))
    prepared = Prepared(similarity(2))
    prepared.compute_saliency = lambda: iter([np.full((2, 16), np.inf, np.float32)])
    with pytest.raises(NotFiniteAttentionError, match="must be finite"):
        masker(prepared, 0.5, (1,))
