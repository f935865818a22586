"""Odd image files come out as a person would expect; broken ones as one BrokenImage."""

import contextlib
import io
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ehm.data import decode_image
from ehm.data.threads import map_in_threads
from ehm.errors import BrokenImage

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


def written(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def pixels(file):
    image = decode_image(file, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(file):
    values = pixels(file)
    assert (values == values[..., :1]).all()
    return values[..., 0]


def test_rgb_is_untouched(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert (np.asarray(decode_image(tmp_path / "a.png")) == PIXELS).all()


def test_grey_and_bilevel_have_equal_channels():
    assert (grey(written(Image.fromarray(GREY))) == GREY).all()
    assert (grey(written(Image.fromarray(GREY > 99))) == 255 * (GREY > 99)).all()


def test_palette_gives_its_colours():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50, 1, 2, 3])
    expected = [[[10, 20, 30], [200, 100, 50]], [[1, 2, 3], [200, 100, 50]]]
    assert (pixels(written(image)) == expected).all()
    white = [[[10, 20, 30], [255, 255, 255]], [[1, 2, 3], [255, 255, 255]]]
    assert (pixels(written(image, transparency=1)) == white).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode):
    alpha = RNG.integers(0, 256, GREY.shape, dtype=np.uint8)
    colours = PIXELS if mode == "RGBA" else GREY[..., None]
    image = Image.fromarray(np.concatenate([colours, alpha[..., None]], -1))
    assert image.mode == mode
    share = alpha[..., None] / 255
    assert np.abs(pixels(written(image)) - (colours * share + 255 * (1 - share))).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_a_transparent_colour_becomes_white(mode):
    image = Image.new(mode, (2, 1), "black")
    image.putpixel((1, 0), (90, 90, 90) if mode == "RGB" else 90 if mode == "L" else 1)
    key = (90, 90, 90) if mode == "RGB" else 90 if mode == "L" else 1
    assert pixels(written(image, transparency=key)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">")])
def test_16_bits_are_scaled_by_the_full_range(kind, order):
    values = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)
    values[0, :2] = 0, 65535
    got = grey(written(Image.fromarray(values.astype(order + "u2")), kind))
    assert (got == np.round(values / 257)).all()


def without_adobe(jpeg):
    data = jpeg.getvalue()
    start = data.index(b"\xff\xee")
    (length,) = struct.unpack(">H", data[start + 2 : start + 4])
    return io.BytesIO(data[:start] + data[start + 2 + length :])


@pytest.mark.parametrize(
    ("ink", "seen"),
    [((10, 100, 200, 30), (216, 137, 49)), ((0, 255, 255, 0), (255, 0, 0)), ((200, 50, 20, 90), (36, 133, 152))],
)
def test_cmyk_jpegs_are_inverted_with_and_without_adobes_marker(ink, seen):
    """The colours that Skia 144 (Chromium's library of pictures) shows for both files."""
    adobe = written(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)  # Pillow writes inverted, with the marker
    for file in (adobe, without_adobe(adobe)):
        assert np.abs(pixels(file)[8, 8].astype(int) - seen).max() <= 1


def test_cmyk_tiff_is_not_inverted():
    values = pixels(written(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"))
    assert (values == [255, 0, 0]).all()


STORED = {  # EXIF: where the stored row 0 and column 0 lie in the upright image
    1: lambda image: image,  # top, left
    2: lambda image: image[:, ::-1],  # top, right
    3: lambda image: image[::-1, ::-1],  # bottom, right
    4: lambda image: image[::-1],  # bottom, left
    5: lambda image: image.swapaxes(0, 1),  # left, top
    6: lambda image: image[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda image: image[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](PIXELS)))
    assert (pixels(written(stored, kind, exif=exif)) == PIXELS).all()


def test_damaged_exif_leaves_the_picture():
    file = written(Image.fromarray(PIXELS), exif=b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\xff\xff\x01")
    assert (pixels(file) == PIXELS).all()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    file = written(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert (pixels(file) == [255, 0, 0]).all()


def refused(file, name="some/file.jpg"):
    with pytest.raises(BrokenImage) as raised:
        decode_image(file, name)
    message = str(raised.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"])
def test_truncated_files_are_broken(kind):
    data = written(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind).getvalue()
    refused(io.BytesIO(data[: len(data) // 2]))


def test_files_that_are_no_images_are_broken(tmp_path):
    assert "not an image" in refused(io.BytesIO(b"<html>404</html>"))
    assert "not an image" in refused(io.BytesIO(b""))
    with pytest.raises(BrokenImage, match=r"gone\.png: No such file"):
        decode_image(tmp_path / "gone.png")


@pytest.mark.parametrize("side", [12, 30])  # beyond Pillow's limit it only warns, beyond twice the limit it raises
def test_decompression_bombs_are_refused(side, monkeypatch):
    file = written(Image.new("RGB", (side, side)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "bomb" in refused(file)


def test_threads_leave_the_filters_of_warnings_alone(monkeypatch):
    """Each refuses bombs, and none takes the filters of another for those to put back."""
    files = [written(Image.new("RGB", (side, side))).getvalue() for side in (9, 12) * 200]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    before = list(warnings.filters)

    def side(data):
        try:
            return decode_image(io.BytesIO(data)).width
        except BrokenImage:
            return None

    assert list(map_in_threads(side, files, 4)) == [9, None] * 200
    assert warnings.filters == before


WHOLE = [
    written(Image.fromarray(PIXELS).resize((40, 30)), kind).getvalue()
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8))
def test_any_damage_gives_an_image_or_broken_image(data, damage):
    data = bytearray(data)
    for place, value in damage:
        data[place % len(data)] = value
    with contextlib.suppress(BrokenImage):
        assert decode_image(io.BytesIO(bytes(data)), "x").mode == "RGB"
