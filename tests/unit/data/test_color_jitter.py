"""Colour jitter against torchvision's ColorJitter, which BEiT's pretraining uses."""

from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as tv

from ehm.data import TrainTransform
from ehm.data.augment import jitter_colors
from ehm.data.train_transform import draw_resized_crop

ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)


def picture(size=(37, 29)):
    corners = np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


class Given:
    """A generator whose numbers are known: the order, and where in its range each factor is."""

    def __init__(self, order, places):
        self.order, self.places, self.factors = order, iter(places), []

    def permutation(self, count):
        assert count == len(self.order)
        return np.array(self.order)

    def uniform(self, low, high):
        self.factors.append(low + next(self.places) * (high - low))
        return self.factors[-1]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_pixels_are_torchvisions(order):
    for strength, places in ((0.4, (0, 1, 0.3)), (0.4, (0.9, 0.1, 1)), (1.0, (0.2, 0.8, 0.6)), (0.1, (1, 0, 0.5))):
        given = Given(order, places)
        got = np.asarray(jitter_colors(picture(), strength, given))
        assert given.factors == pytest.approx([1 - strength + place * 2 * strength for place in places])
        # on tensors, where torchvision computes by itself instead of by Pillow
        expected = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1)
        for index, factor in zip(order, given.factors, strict=True):
            expected = ADJUST[index](expected, factor)
        difference = got.astype(int) - expected.permute(1, 2, 0).numpy()
        assert np.abs(difference).max() <= 4  # each of three operations rounds in its own way
        assert np.abs(difference).mean() < 1.5


def moments(image):
    """Brightness, contrast and saturation of an image."""
    pixels = np.asarray(image, float)
    return pixels.mean(), pixels.mean(axis=2).std(), (pixels.max(axis=2) - pixels.min(axis=2)).mean()


def test_factors_and_orders_are_distributed_as_torchvisions():
    rng, image = np.random.default_rng(0), picture((8, 8))
    torch.manual_seed(0)
    theirs = ColorJitter(0.4, 0.4, 0.4)
    ours = np.array([moments(jitter_colors(image, 0.4, rng)) for _ in range(1500)])
    others = np.array([moments(theirs(image)) for _ in range(1500)])
    for mine, other in zip(ours.T, others.T, strict=True):
        assert ks_2samp(mine, other).pvalue > 0.01
    grey = Image.new("RGB", (2, 2), (100, 100, 100))  # contrast and saturation leave it
    factors = [np.asarray(jitter_colors(grey, 0.4, rng)).flat[0] / 100 for _ in range(500)]
    noise = np.random.default_rng(1).uniform(-0.005, 0.005, 500)  # pixels are whole
    assert kstest(factors + noise, "uniform", (0.6, 0.8)).pvalue > 0.01


def test_none_draws_no_random_numbers():
    image, rng, expected = picture(), np.random.default_rng(5), np.random.default_rng(5)
    plain = TrainTransform((16, 16), color_jitter=0.0)(image, rng)
    draw_resized_crop(29, 37, (0.2, 1.0), expected)
    expected.random()  # of the flip
    assert rng.bit_generator.state == expected.bit_generator.state
    jittered = TrainTransform((16, 16), color_jitter=0.4)(image, rng := np.random.default_rng(5))
    assert rng.bit_generator.state != expected.bit_generator.state
    assert (jittered != plain).any()
