"""Image and mask are cut alike, at the sizes of ADE20K's recipe, and colours change as it says."""

from colorsys import rgb_to_hsv

import numpy as np
import pytest
from PIL import Image

from ehm.data.segmentation import CropTransform, distort_colours, fit_size, resize_to_scale
from ehm.data.sources.pairs import Pair


def ramp(width, height, step=3):
    """An image whose red is its mask (values up to 200), smooth enough that resizing keeps them together."""
    labels = np.add.outer(np.arange(height), np.arange(width)) * step % 200
    labels = (labels // 50).astype(np.uint8)
    grey = (labels * 50).astype(np.uint8)
    return Pair(Image.fromarray(np.stack([grey] * 3, -1)), labels)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((683, 512), (683, 512)), ((300, 200), (768, 512)), ((200, 300), (512, 768)), ((500, 100), (2048, 410))],
)
def test_sizes_are_those_of_mmcv(size, fitted):
    # rescale_size(old, (2048, 512)): min(2048 / long, 512 / short), int(side * factor + 0.5)
    assert fit_size(*size, (2048, 512)) == fitted
    assert resize_to_scale(Image.new("RGB", size), (2048, 512)).shape == (*fitted[::-1], 3)
    assert resize_to_scale(Image.new("RGB", size), None).shape == (*size[::-1], 3)
    half = fit_size(*size, (2048, 512), 0.5)
    assert np.abs(np.array(half) * 2 - fitted).max() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_image_and_mask_stay_together(seed):
    transform = CropTransform((64, 96), scale=(256, 64), ratio=(0.5, 2.0), colours=False)
    sample = transform(ramp(160, 90, step=1), np.random.default_rng(seed))
    assert sample.shape == transform.shape == (64, 96, 4)
    labels = sample[..., 3]
    valid = labels != 255
    near = np.abs(sample[..., 0][valid].astype(int) - labels[valid] * 50) < 26
    assert near.mean() > 0.9
    assert (sample[~valid][:, :3] == transform.fill).all()
    assert set(np.unique(labels)) <= {0, 1, 2, 3, 255}


def test_without_anything_random_it_is_pillows_resize():
    pair = ramp(100, 80)
    transform = CropTransform((40, 50), (50, 40), (1, 1), 1, flip=False, colours=False)
    sample = transform(pair, np.random.default_rng(0))
    np.testing.assert_array_equal(sample[..., :3], pair.image.resize((50, 40), Image.Resampling.BILINEAR))
    nearest = Image.fromarray(pair.labels).resize((50, 40), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(sample[..., 3], nearest)


def test_a_crop_is_a_part_of_the_resized_image_wherever_it_lies():
    pair = ramp(61, 47)
    whole = pair.image.resize((122, 94), Image.Resampling.BILINEAR)
    transform = CropTransform((32, 32), (122, 94), (1, 1), 1, flip=False, colours=False)
    for seed in range(5):
        rng, again = (np.random.default_rng(seed) for _ in range(2))
        sample = transform(pair, rng)
        again.uniform(1, 1)
        top, left = int(again.integers(94 - 32 + 1)), int(again.integers(122 - 32 + 1))
        cut = np.asarray(whole)[top : top + 32, left : left + 32].astype(int)
        assert np.abs(sample[..., :3] - cut).max() <= 1


def test_a_class_that_fills_a_crop_is_avoided_and_ignored_pixels_do_not_count():
    labels = np.zeros((100, 100), np.uint8)
    labels[::10, ::10] = 1  # in every crop there are two classes
    labels[:, 75::2] = 1
    labels[1::2] = 255
    pair = Pair(Image.new("RGB", (100, 100)), labels)
    good = {}
    for max_share in (0.75, 1.0):
        transform = CropTransform((20, 20), None, (1, 1), max_share, flip=False, colours=False)
        crops = [transform(pair, np.random.default_rng(seed))[..., 3] for seed in range(100)]
        counts = [np.bincount(crop[crop != 255], minlength=2) for crop in crops]
        good[max_share] = np.mean([count.max() < 0.75 * count.sum() for count in counts])
    assert good[1.0] < 0.3
    assert good[0.75] > 0.8


def test_the_flip_is_of_what_is_there_and_padding_stays_outside():
    pair = ramp(30, 20)
    transform = CropTransform((32, 64), None, (1, 1), 1, flip=True, colours=False)
    seen = {bytes(transform(pair, np.random.default_rng(seed))) for seed in range(12)}
    plain = np.full((32, 64), 255, np.uint8)
    plain[:20, :30] = pair.labels
    mirrored = plain.copy()
    mirrored[:, :30] = mirrored[:, :30][:, ::-1]
    masks = {np.frombuffer(each, np.uint8).reshape(32, 64, 4)[..., 3].tobytes() for each in seen}
    assert masks == {plain.tobytes(), mirrored.tobytes()}


def test_colours_change_within_their_limits_and_half_of_the_time_each():
    image = Image.new("RGB", (2, 2), (120, 100, 90))
    changed = np.array(
        [np.asarray(distort_colours(image, np.random.default_rng(seed)))[0, 0] for seed in range(400)], float
    )
    same = (changed == (120, 100, 90)).all(1).mean()
    assert 0.02 < same < 0.12  # a sixteenth
    assert changed[:, 0].min() < 60
    assert changed[:, 0].max() > 150  # 1.5 times as bright, or 32 levels
    bright = [pixel / 255 for pixel in changed if pixel.min() > 20]  # of others rounding changes the hue
    turned = np.array([(360 * rgb_to_hsv(*pixel)[0] - 20 + 180) % 360 - 180 for pixel in bright])
    assert -39 < turned.min() < -30  # by up to 36 degrees
    assert 30 < turned.max() < 39
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    for seed in range(50):
        pixel = np.asarray(distort_colours(grey, np.random.default_rng(seed)))[0, 0].astype(int)
        assert np.ptp(pixel) <= 1  # grey has no hue
        assert (100 - 32) * 0.5 - 2 <= pixel[0] <= (100 + 32) * 1.5 + 2
