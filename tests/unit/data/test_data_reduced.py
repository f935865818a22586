"""Large JPEGs that are decoded at a reduced size give nearly what all of their pixels give."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from sklearn.datasets import load_sample_images

from ehm.config.inputs import InputSpec
from ehm.data.decoding.decode import decode_image
from ehm.data.eval_transform import EvalTransform

ON_AVERAGE = 0.75
WORST = 8
"""Levels of 255 by which values may differ. Seen on these photographs: 0.63 on average and 5 at worst."""


def photographs():
    china, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    folder = Path(skimage.__file__).parent / "data"
    return {
        "china": china.resize((1280, 864), Image.Resampling.LANCZOS),
        "flower": flower.crop((0, 0, 640, 424)),
        "astronaut": Image.open(folder / "astronaut.png").convert("RGB"),
        "coffee": Image.open(folder / "coffee.png").convert("RGB"),
        "brick": Image.open(folder / "brick.png").convert("RGB"),
    }


PHOTOGRAPHS = photographs()


def jpeg(image, **options):
    file = BytesIO()
    image.save(file, "JPEG", **options)
    return BytesIO(file.getvalue())


def whole(file, transform):
    """Pillow's own reading of every pixel, then the transform."""
    return transform(Image.open(BytesIO(file.getvalue())).convert("RGB")).astype(int)


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 95, "subsampling": 0}], ids=["4:2:0", "4:4:4"])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_reduced_photograph_differs_by_the_stated_bound_at_most(name, options):
    file = jpeg(PHOTOGRAPHS[name], **options)
    reduced = 0
    for size in ((16, 16), (32, 40), (48, 48), (96, 96), (224, 224)):
        transform = EvalTransform(size)
        image = decode_image(file, enough=transform.cover)
        reduced += image.size != PHOTOGRAPHS[name].size
        difference = np.abs(transform(image).astype(int) - whole(file, transform))
        assert difference.mean() < ON_AVERAGE
        assert difference.max() <= WORST
    assert reduced >= 2


@pytest.mark.parametrize(
    ("size", "enough", "expected"),
    [
        ((800, 640), (32, 40), (100, 80)),  # by 8, to 2.5 times as much
        ((800, 640), (33, 40), (200, 160)),
        ((800, 640), (32, 41), (200, 160)),
        ((804, 640), (32, 40), (201, 160)),  # 804 is no multiple of 8
        ((801, 640), (32, 40), (801, 640)),
        ((800, 640), (128, 128), (400, 320)),
        ((800, 640), (129, 128), (800, 640)),
    ],
)
def test_the_size_is_reduced_as_far_as_it_divides_and_enough_is_left(size, enough, expected):
    file = jpeg(Image.new("RGB", size))
    assert decode_image(file, enough=enough).size == expected
    assert decode_image(file).size == size


def test_an_image_on_its_side_is_measured_as_it_will_be_seen():
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = PHOTOGRAPHS["coffee"]
    file = jpeg(upright.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95)
    found = decode_image(file, enough=(80, 120))
    assert found.size == (300, 200)
    there = np.asarray(upright.reduce(2)).astype(int)
    assert np.abs(np.asarray(found).astype(int) - there).mean() < 3
    assert decode_image(file, enough=(120, 80)).size == (600, 400)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_are_reduced_too(mode):
    file = jpeg(PHOTOGRAPHS["astronaut"].convert(mode), quality=95)
    transform = EvalTransform((32, 32))
    image = decode_image(file, enough=transform.cover)
    assert image.size == (128, 128)
    assert np.abs(transform(image).astype(int) - transform(decode_image(file))).mean() < ON_AVERAGE


def test_a_photograph_with_others_behind_it_is_reduced_too():
    file = BytesIO()
    PHOTOGRAPHS["coffee"].save(file, "MPO", save_all=True, append_images=[PHOTOGRAPHS["coffee"]])
    assert Image.open(file).format == "MPO"
    assert decode_image(file, enough=(80, 120)).size == (300, 200)


def test_other_formats_are_read_whole():
    file = BytesIO()
    PHOTOGRAPHS["coffee"].save(file, "PNG")
    assert np.array_equal(decode_image(file, enough=(8, 8)), PHOTOGRAPHS["coffee"])


GREY_CASES = {
    "plain": ({}, "L"),
    "turned": ({"exif": b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"}, "L"),
    "transparent": ({"transparency": 90}, "RGB"),  # composited on white, as ever
}
SPECS = [
    InputSpec(),
    InputSpec(crop_pct=1.0, crop_mode="border", interpolation="bilinear"),
    InputSpec(crop_pct=1.0, crop_mode="squash"),
    InputSpec(crop_pct=1.15),
]


@pytest.mark.parametrize("case", GREY_CASES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_greyscale_becomes_rgb_once_it_is_resized_with_the_same_pixels(case, spec):
    options, mode = GREY_CASES[case]
    file = BytesIO()
    PHOTOGRAPHS["coffee"].convert("L").save(file, "PNG", **options)
    transform = EvalTransform.from_spec((48, 80), spec)
    image = decode_image(file, enough=transform.cover)
    assert image.mode == mode
    whole_image = decode_image(file)
    assert whole_image.mode == "RGB"
    assert np.array_equal(transform(image), transform(whole_image))


def test_damaged_metadata_does_not_matter():
    file = jpeg(Image.new("RGB", (80, 80), "red"), exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\x01")
    assert decode_image(file, enough=(16, 16)).size == (40, 40)
