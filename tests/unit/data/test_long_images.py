"""Very long images: only what is needed is enlarged, and what comes out is what enlarging all of it would give."""

import numpy as np
import pytest
from PIL import Image

from ehm.data import EvalTransform
from ehm.data.long_images import MOST_PIXELS, find_central_part


def stripes(width, height):
    """A smooth picture that is the same from its middle to both ends."""
    across = np.cos((np.arange(width) - (width - 1) / 2) / 7)
    down = np.cos((np.arange(height) - (height - 1) / 2) / 3)
    grey = np.round(127.5 + 60 * across[None] + 60 * down[:, None]).astype(np.uint8)
    return Image.fromarray(np.stack([grey, 255 - grey, grey // 2], axis=-1))


def resized_pixels(width, height, cover):
    left, top, right, bottom = find_central_part(width, height, cover)
    width, height = right - left, bottom - top
    return max(cover[1], width * cover[0] // height) * max(cover[0], height * cover[1] // width)


@pytest.mark.parametrize("size", [(30_000, 2), (2, 30_000), (3_000_000, 1), (1, 3_000_000), (9_001, 3), (2000, 1)])
@pytest.mark.parametrize("cover", [(36, 36), (256, 256), (592, 592), (64, 128), (1200, 1200)])
def test_what_is_resized_stays_small_and_the_centre_stays_in_the_middle(size, cover):
    left, top, right, bottom = find_central_part(*size, cover)
    assert (left, top) == (size[0] - right, size[1] - bottom)
    assert resized_pixels(*size, cover) <= max(MOST_PIXELS * 1.1, 17 * max(cover) ** 2)
    part = right - left, bottom - top
    assert max(part) / min(part) > 15  # nothing that a crop of the centre could show is lost


def test_ordinary_images_and_panoramas_are_not_touched():
    for width, height in ((640, 480), (1, 1), (60, 1), (1, 60), (16_000, 1_000), (999, 60_000)):
        assert find_central_part(width, height, (256, 256)) == (0, 0, width, height)
    assert find_central_part(16_000, 1_000, (1024, 1024)) == (0, 0, 16_000, 1_000)


@pytest.mark.parametrize("size", [(6_000, 3), (3, 6_001)])
def test_the_crop_is_that_of_the_whole_image_enlarged(size):
    """Pillow enlarges a part of an image without leaving what lies around it out: the ``box`` of its resize."""
    image, side = stripes(*size), 224
    got = EvalTransform((side, side))(image).astype(int)
    share = side / 256 * min(size)  # of the source, in pixels, that the crop shows
    centre = size[0] / 2, size[1] / 2
    box = (centre[0] - share / 2, centre[1] - share / 2, centre[0] + share / 2, centre[1] + share / 2)
    expected = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box)).astype(int)
    assert np.abs(got - expected).max() <= 2
