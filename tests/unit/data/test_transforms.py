"""Crops are torchvision's: the same boxes, the same pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torch import manual_seed
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms import functional as tv

from ehm.data import EvalTransform, TrainTransform
from ehm.data.train_transform import draw_resized_crop
from ehm.errors import ConfigError

sides = st.integers(1, 90)


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from([(32, 32), (24, 40), (40, 24)]), st.integers(0, 9))
def test_a_crop_has_torchvisions_pixels(height, width, size, seed):
    image = picture(height, width)
    top, left, h, w = draw_resized_crop(height, width, (0.2, 1.0), np.random.default_rng(seed))
    expected = tv.resized_crop(image, top, left, h, w, size, InterpolationMode.BICUBIC)
    got = TrainTransform(size, (0.2, 1.0), flip=False)(image, np.random.default_rng(seed))
    assert got.dtype == np.uint8
    assert (got == np.asarray(expected)).all()


@pytest.mark.parametrize(("height", "width"), [(300, 300), (60, 110), (500, 333)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    rng, image = np.random.default_rng(0), picture(height, width)
    manual_seed(0)
    ours = np.array([draw_resized_crop(height, width, (0.2, 1.0), rng) for _ in range(3000)], float)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)], float)
    for quantity in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert ks_2samp(quantity(ours), quantity(theirs)).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10), (33, 7), (1, 50), (50, 1)])
def test_an_impossible_crop_falls_back_as_torchvisions(height, width):
    expected = RandomResizedCrop.get_params(picture(height, width), [1.0, 1.0], [3 / 4, 4 / 3])
    assert draw_resized_crop(height, width, (1.0, 1.0), np.random.default_rng(0)) == expected


def test_scale_one_and_a_square_is_the_whole_image():
    drawn = {draw_resized_crop(64, 64, (1.0, 1.0), np.random.default_rng(seed), (1.0, 1.0)) for seed in range(9)}
    assert drawn == {(0, 0, 64, 64)}


def test_half_of_the_images_are_flipped():
    image = picture(20, 20)
    plain = TrainTransform((20, 20), flip=False)
    flipped = 0
    for seed in range(200):
        got = TrainTransform((20, 20))(image, np.random.default_rng(seed))
        kept = plain(image, np.random.default_rng(seed))
        assert (got == kept).all() or (got == kept[:, ::-1]).all()
        flipped += not (got == kept).all()
    assert 70 < flipped < 130


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.sampled_from([16, 21, 32]))
def test_evaluation_is_torchvisions(height, width, size):
    image = picture(height, width)
    reference = Compose([Resize(int(size / (224 / 256)), InterpolationMode.BICUBIC), CenterCrop(size)])
    assert (EvalTransform((size, size))(image) == np.asarray(reference(image))).all()


def test_evaluation_at_224_and_beyond_is_maes():
    image = picture(301, 407)
    at_224 = Compose([Resize(256, InterpolationMode.BICUBIC), CenterCrop(224)])
    beyond = Compose([Resize(240, InterpolationMode.BICUBIC), CenterCrop(240)])
    assert (EvalTransform((224, 224))(image) == np.asarray(at_224(image))).all()
    assert (EvalTransform((240, 240))(image) == np.asarray(beyond(image))).all()


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.sampled_from([(16, 48), (48, 16), (20, 30), (230, 20)]))
def test_evaluation_covers_sizes_that_are_not_square(height, width, size):
    white = Image.new("RGB", (width, height), "white")  # a crop beyond the image would be black there
    got = EvalTransform(size)(white)
    assert got.shape == (*size, 3)
    assert (got == 255).all()


def test_evaluation_of_a_wide_size_keeps_the_middle_undistorted():
    image = Image.new("L", (400, 200))
    image.paste(255, (180, 80, 220, 120))  # a square in the middle stays one
    got = EvalTransform((32, 96))(image.convert("RGB"))[..., 0] > 127
    rows, columns = np.flatnonzero(got.any(1)), np.flatnonzero(got.any(0))
    assert len(rows) == pytest.approx(len(columns), abs=1)
    assert rows.mean() == pytest.approx(15.5, abs=0.6)
    assert columns.mean() == pytest.approx(47.5, abs=0.6)


def test_a_wrong_policy_is_an_error_at_once():
    with pytest.raises(ConfigError, match="rand_augment"):
        TrainTransform((32, 32), rand_augment="auto")
