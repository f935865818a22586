"""Mixup and CutMix against timm's, fed with the same random numbers."""

import numpy as np
import pytest
import torch
from timm.data import Mixup

from ehm.tasks.classification.mixing import make_soft_targets, mix_images


class Recorder:
    """A generator that remembers what it gave."""

    def __init__(self, seed):
        self._rng, self.drawn = np.random.default_rng(seed), []

    def random(self):
        return self._keep(self._rng.random())

    def beta(self, a, b):
        return self._keep(self._rng.beta(a, b))

    def integers(self, high):
        return self._keep(self._rng.integers(high))

    def _keep(self, value):
        self.drawn.append(value)
        return value


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 20, 30, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, 6)
    return images, labels


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0), (0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_timms(batch, monkeypatch, mixup, cutmix, seed):
    images, labels = batch
    rng = Recorder(seed)
    before = images.copy()
    mixed, targets = mix_images(images, make_soft_targets(labels, 4, 0.1), mixup, cutmix, rng)
    assert np.array_equal(images, before)

    drawn = iter([0.0, *rng.drawn])  # timm first draws whether to mix at all
    monkeypatch.setattr(np.random, "rand", lambda: next(drawn))
    monkeypatch.setattr(np.random, "beta", lambda a, b: next(drawn))
    monkeypatch.setattr(np.random, "randint", lambda low, high, size: next(drawn))
    theirs = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.1, num_classes=4)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    expected, expected_targets = theirs(pixels, torch.from_numpy(labels))
    assert next(drawn, None) is None
    assert mixed.dtype == np.uint8
    assert np.abs(mixed.transpose(0, 3, 1, 2) - expected.numpy()).max() <= 0.5 + 1e-4
    assert targets == pytest.approx(expected_targets.numpy(), abs=1e-6)
    assert targets.dtype == np.float32


def test_both_are_drawn_about_equally_often(batch):
    images, labels = batch
    targets = make_soft_targets(labels, 4)
    kinds = []
    for seed in range(200):
        mixed, _ = mix_images(images, targets, 0.8, 1.0, np.random.default_rng(seed))
        whole = (mixed == images) | (mixed == images[::-1])
        kinds.append(bool(whole.all()))  # CutMix leaves every pixel one image's
    assert 70 < sum(kinds) < 130


def test_off_means_untouched(batch):
    images, labels = batch
    targets = make_soft_targets(labels, 4)
    mixed, same = mix_images(images, targets, 0, 0, np.random.default_rng(0))
    assert mixed is images
    assert same is targets


def test_an_odd_batch_keeps_its_middle_image(batch):
    images, labels = batch[0][:5], batch[1][:5]
    mixed, targets = mix_images(images, make_soft_targets(labels, 4), 0.8, 1.0, np.random.default_rng(1))
    assert np.array_equal(mixed[2], images[2])
    assert targets.sum(axis=1) == pytest.approx(np.ones(5))


def test_smoothing_spreads_evenly():
    assert make_soft_targets(np.array([1]), 4, 0.2)[0] == pytest.approx([0.05, 0.85, 0.05, 0.05])
    assert make_soft_targets(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
