"""RandAugment and random erasing against timm's."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest
from timm.data.auto_augment import AugmentOp, rand_augment_transform
from timm.data.random_erasing import RandomErasing as TimmErasing

from ehm.data import RandAugment, RandomErasing, TrainTransform, augment
from ehm.data.augment import OPERATIONS, scale_strength
from ehm.errors import ConfigError

FILL = (124, 116, 104)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENHANCED = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


def picture(seed=0):
    corners = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((37, 29), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_timms_pixels(name, sign, increasing, monkeypatch):
    theirs = name + "Increasing" if increasing and name in ENHANCED else name
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    monkeypatch.setattr(random, "random", lambda: 0.9 if sign == -1 else 0.1)  # timm negates above 0.5
    for magnitude in (0, 0.3, 2.5, 5, 7.7, 9, 10):
        level = scale_strength(name, magnitude, sign, increasing)
        got = OPERATIONS[name](picture(), level, FILL)
        if name == "Posterize" and level == 0:  # newer Pillows refuse what timm asks for; older ones gave black
            expected = np.zeros((29, 37, 3))
        else:
            expected = AugmentOp(theirs, prob=1.0, magnitude=magnitude, hparams=hparams)(picture())
        assert (np.asarray(got) == np.asarray(expected)).all(), magnitude


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m7-n3", "rand-n1-inc1", "rand-inc0-m5-mstd1", "rand"])
def test_policies_are_read_as_timm_reads_them(policy):
    ours, theirs = RandAugment(policy), rand_augment_transform(policy)
    assert ours.count == theirs.num_layers
    assert {op.magnitude for op in theirs.ops} == {ours.magnitude}
    assert {op.magnitude_std for op in theirs.ops} == {ours.deviation}
    assert {op.prob for op in theirs.ops} == {0.5}
    names = [name + "Increasing" if ours.increasing and name in ENHANCED else name for name in OPERATIONS]
    assert [op.name for op in theirs.ops] == names


@pytest.mark.parametrize(
    "policy",
    ["", "auto-m9", "rand-m11", "rand-m9-x3", "rand-m", "rand-m9-inc2", "rand-n1.5", "rand-mstd101", "rand-m9-"],
)
def test_other_policies_are_errors(policy):
    with pytest.raises(ConfigError, match=r"augment\.rand_augment .*rand-mM-mstdS-incI-nN"):
        RandAugment(policy)


def test_operations_and_magnitudes_are_drawn_as_the_policy_says(monkeypatch):
    applied, magnitudes, signs = [], [], []

    def operation(name):
        return lambda image, *_: applied.append(name) or image

    def recorded(name, magnitude, sign, increasing):
        magnitudes.append(magnitude)
        signs.append(sign)

    monkeypatch.setattr(augment, "OPERATIONS", {name: operation(name) for name in OPERATIONS})
    monkeypatch.setattr(augment, "scale_strength", recorded)
    policy, rng = RandAugment("rand-m9-mstd0.5-inc1"), np.random.default_rng(0)
    for _ in range(6000):
        policy(picture(), rng)
    assert len(applied) == pytest.approx(6000, abs=300)  # two an image, each half of the time
    counts = [applied.count(name) for name in OPERATIONS]
    assert min(counts) > 300
    assert max(counts) < 500
    assert np.mean(signs) == pytest.approx(0, abs=0.05)
    below = np.array([magnitude for magnitude in magnitudes if magnitude < 10])
    assert max(magnitudes) == 10
    assert kstest(below, lambda x: np.clip(normal_cdf(x) / normal_cdf(10), 0, 1)).pvalue > 1e-3


def normal_cdf(x):
    return torch.special.ndtr(torch.as_tensor((np.asarray(x) - 9) / 0.5)).numpy()


def test_the_same_generator_gives_the_same_image():
    policy = RandAugment("rand-m9-mstd0.5-inc1", FILL)
    first, second, other = (np.asarray(policy(picture(), np.random.default_rng(seed))) for seed in (3, 3, 4))
    assert (first == second).all()
    assert (first != other).any()


def test_the_training_transform_fills_with_the_mean(monkeypatch):
    seen = set()

    def operation(image, level, fill):
        seen.add(fill)
        return image

    monkeypatch.setattr(augment, "OPERATIONS", dict.fromkeys(OPERATIONS, operation))
    transform = TrainTransform((16, 16), rand_augment="rand-m9-n9", mean=MEAN, std=STD)
    assert transform(picture(), np.random.default_rng(0)).shape == (16, 16, 3)
    assert seen == {FILL}  # round(255 * mean), as timm


def erased_area(before, after):
    changed = (before != after).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    if not len(rows):
        return None
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


def test_rectangles_are_distributed_as_timms():
    rng, random_state = np.random.default_rng(0), random.getstate()
    random.seed(0)
    torch.manual_seed(0)
    ours, theirs = [], []
    reference = TimmErasing(1.0, mode="pixel", device="cpu")
    erase = RandomErasing(1.0, (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))  # 765, clipped to 255: the rectangle is plain to see
    black = np.zeros((40, 56, 3), np.uint8)
    for _ in range(1500):
        got = erase(black, rng)
        assert set(np.unique(got)) <= {0, 255}
        ours.append(erased_area(black, got))
        theirs.append(erased_area(black, reference(torch.zeros(3, 40, 56)).permute(1, 2, 0).numpy()))
    random.setstate(random_state)
    assert not black.any()
    assert ours.count(None) == pytest.approx(theirs.count(None), abs=10)
    ours, theirs = (np.array([size for size in sizes if size], float) for sizes in (ours, theirs))
    for quantity in (lambda s: s[:, 0] * s[:, 1], lambda s: s[:, 0] / s[:, 1]):
        assert ks_2samp(quantity(ours), quantity(theirs)).pvalue > 1e-3


def test_noise_has_the_normalisations_mean_and_deviation():
    black = np.zeros((200, 200, 3), np.uint8)
    mean, std = (0.3, 0.5, 0.6), (0.05, 0.1, 0.1)
    noise = RandomErasing(1.0, mean, std)(black, np.random.default_rng(0))
    noise = noise[noise.any(-1)] / 255
    assert noise.mean(0) == pytest.approx(mean, abs=0.01)
    assert noise.std(0) == pytest.approx(std, abs=0.01)


def test_a_quarter_of_the_images_are_erased():
    erase, rng, image = RandomErasing(0.25, MEAN, STD), np.random.default_rng(0), np.asarray(picture())
    erased = sum((erase(image, rng) != image).any() for _ in range(1000))
    assert erased == pytest.approx(250, abs=45)


def test_the_training_transform_erases_last():
    image = Image.new("RGB", (40, 40), (1, 2, 3))
    got = TrainTransform((32, 32), random_erasing=1.0, mean=(0.9,) * 3, std=(0.01,) * 3)(
        image, np.random.default_rng(1)
    )
    touched = (got != (1, 2, 3)).any(-1)
    assert 0.02 * 32 * 32 * 0.8 < touched.sum() < 32 * 32 / 3 * 1.2
    assert got[touched].mean() == pytest.approx(0.9 * 255, abs=2)
