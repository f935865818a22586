"""Images of more than 8 bits: what is black and what is white follows from the type or is stated, never from a pixel.

Files are written by tifffile, an implementation of its own, from bytes that are known.
"""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from odd_tiffs import SIZE, TIFFS
from PIL import Image

from ehm.config import DataConfig, load_config
from ehm.data import decode_image, open_source
from ehm.data.decoding import tiff_segments
from ehm.data.decoding.decode import read_head
from ehm.data.decoding.depth import DEPTH
from ehm.data.decoding.depth_notes import describe_depths
from ehm.data.decoding.tiff import read_tiff
from ehm.errors import BrokenImage, ConfigError

ROWS, COLUMNS, CHANNELS = np.mgrid[:40, :33, :3]
RGB = ((COLUMNS * 29 + ROWS * 11 + CHANNELS * 50) % 256).astype(np.uint8)
GREY = RGB[..., 0]
UNIT = (RGB / 255).astype(np.float32)
RGB16 = RGB.astype(np.uint16) * 257
LAYOUTS = {
    "strips": {"rowsperstrip": 7},
    "one strip": {},
    "tiles": {"tile": (16, 32)},
    "deflate": {"compression": "deflate", "rowsperstrip": 9},
    "differences": {"compression": "deflate", "predictor": True},
    "lzma tiles": {"compression": "lzma", "predictor": True, "tile": (32, 16)},
    "BigTIFF": {"bigtiff": True},
}


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **options)
    file.seek(0)
    return file


def pixels(file, value_range=None):
    return np.asarray(decode_image(file, "x", value_range=value_range))


def grey(file, value_range=None):
    values = pixels(file, value_range)
    assert (values == values[..., :1]).all()
    return values[..., 0]


@pytest.mark.parametrize(
    ("layout", "order"),
    [(layout, order) for layout in LAYOUTS for order in "<>" if (layout, order) != ("BigTIFF", ">")],
)  # Pillow reads no tags of a BigTIFF whose highest bytes come first
def test_colours_are_the_same_however_they_lie_in_the_file(layout, order):
    options = {"photometric": "rgb", "byteorder": order, **LAYOUTS[layout]}
    np.testing.assert_array_equal(pixels(tiff(RGB16, **options)), RGB)
    planes = {**options, "planarconfig": "separate"}
    np.testing.assert_array_equal(pixels(tiff(RGB16.transpose(2, 0, 1), **planes)), RGB)
    if "predictor" not in options:  # that of floating point needs what the files below were made with
        np.testing.assert_array_equal(pixels(tiff(UNIT, **options)), RGB)
        np.testing.assert_array_equal(pixels(tiff(UNIT.astype(np.float64).transpose(2, 0, 1), **planes)), RGB)


@pytest.mark.parametrize("name", TIFFS)
def test_files_of_other_writers_give_their_bytes(name):
    rgb = RGB[: SIZE[1], : SIZE[0]]
    expected = rgb if name.startswith("rgb") else np.repeat(rgb[..., :1], 3, axis=2)
    np.testing.assert_array_equal(pixels(io.BytesIO(TIFFS[name])), expected)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero(dtype, order):
    largest = np.iinfo(dtype).max
    values = (largest - GREY.astype(np.uint32) * (largest // 255)).astype(dtype)
    np.testing.assert_array_equal(grey(tiff(values, photometric="miniswhite", byteorder=order)), GREY)
    np.testing.assert_array_equal(grey(tiff(1 - UNIT[..., 0], photometric="miniswhite")), GREY)


def test_one_pixel_decides_over_nothing():
    for odd in (1.001, -9999, np.inf, -np.inf, np.nan, 1e30):
        values = UNIT[..., 0].copy()
        values[0, 0] = odd
        got = grey(tiff(values))
        np.testing.assert_array_equal(got.ravel()[1:], GREY.ravel()[1:])
        assert got[0, 0] == (255 if odd in (1.001, 1e30) else 0)
    frame = GREY.astype(np.uint16) * 4
    one, three = grey(tiff(frame)), grey(tiff(frame * 3))  # one scene at two exposures
    np.testing.assert_array_equal(one, np.round(frame / 257))
    np.testing.assert_array_equal(three, np.round(frame * 3.0 / 257))


def test_what_is_no_number_or_marked_as_missing_is_black_and_counted():
    values = UNIT[..., 0].copy()
    values[3, :5] = np.nan
    values[4, 0] = np.inf
    values[5, :2] = -9999
    marked = tiff(values, extratags=[(42113, 2, 0, "-9999", True)])
    image = decode_image(marked, "x")
    assert np.asarray(image)[3, :5].max() == np.asarray(image)[4, 0].max() == np.asarray(image)[5, :2].max() == 0
    assert image.info[DEPTH].missing == 8
    assert image.info[DEPTH].largest == pytest.approx(1, abs=0.01)
    # of 8 bits too, and white where zero is white
    bytes_ = GREY.copy()
    bytes_[0, :4] = 255
    bytes_[1] = np.minimum(bytes_[1], 254)
    image = decode_image(tiff(bytes_, extratags=[(42113, 2, 0, "255", True)]), "x")
    assert image.info[DEPTH].missing == (bytes_ == 255).sum()
    np.testing.assert_array_equal(np.asarray(image)[..., 0], np.where(bytes_ == 255, 0, bytes_))
    unmarked = decode_image(tiff(values[:3]), "x")
    assert unmarked.info[DEPTH].missing == 0


def test_a_stated_range_holds_for_every_deep_image_and_for_no_other(tmp_path):
    values = GREY.astype(np.uint16) * 16  # 12 bits in a file of 16
    dark = np.round(values / 257)
    expected = np.round(values.astype(float) * 255 / 4000).clip(0, 255)
    np.testing.assert_array_equal(grey(tiff(values)), dark)
    np.testing.assert_array_equal(grey(tiff(values), (0, 4000)), expected)
    np.testing.assert_array_equal(grey(tiff(values.astype(np.int32)), (0, 4000)), expected)
    np.testing.assert_array_equal(grey(tiff(values.astype(np.float32)), (0, 4000)), expected)
    shifted = values.astype(np.int16) - 1000  # as of a scanner, whose air is -1000
    np.testing.assert_array_equal(grey(tiff(shifted), (-1000, 3000)), expected)
    png = io.BytesIO()
    Image.fromarray(values).save(png, "PNG")
    np.testing.assert_array_equal(grey(png, (0, 4000)), expected)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    np.testing.assert_array_equal(grey(tmp_path / "a.png", (0, 4000)), GREY)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32])
def test_a_type_without_a_range_of_its_own_is_refused_with_the_key(dtype):
    with pytest.raises(BrokenImage, match=r"x: has .* integers of \d+ bits, whose range is not known; data\.range="):
        pixels(tiff(GREY.astype(dtype)))
    assert grey(tiff((GREY // 3).astype(dtype)), (0, 85)).max() == 255


def test_floating_point_of_another_range_is_refused_with_the_key():
    for values in (UNIT[..., 0] * 255, UNIT[..., 0] * 4 - 2):
        with pytest.raises(BrokenImage, match=r"lie outside 0 to 1, the largest being .*data\.range="):
            pixels(tiff(values))
    overshot = UNIT[..., 0] * 1.1 - 0.05  # as sharpening and resampling leave it
    np.testing.assert_array_equal(grey(tiff(overshot)), np.round(255 * overshot.clip(0, 1)))


def test_transparency_of_16_bits_is_composited_on_white():
    alpha = np.full(GREY.shape, 65535, np.uint16)
    alpha[:10] = 20000
    share = alpha[..., None] / 65535
    expected = RGB * share + 255 * (1 - share)
    for kind, values in (("unassalpha", RGB16), ("assocalpha", (RGB16 * share).astype(np.uint16))):
        file = tiff(np.concatenate([values, alpha[..., None]], -1), photometric="rgb", extrasamples=[kind])
        assert np.abs(pixels(file) - expected).max() <= 2
    file = tiff(np.stack([RGB16[..., 0], alpha], -1), photometric="minisblack", extrasamples=["unassalpha"],
                planarconfig="contig")  # fmt: skip
    assert np.abs(grey(file) - expected[..., 0]).max() <= 1


def test_cmyk_of_16_bits():
    inks = np.concatenate([255 - RGB, np.zeros_like(RGB[..., :1])], axis=-1)
    np.testing.assert_array_equal(pixels(tiff(inks.astype(np.uint16) * 257, photometric="separated")), RGB)


def png16(values, colour_type):
    """A PNG of 16 bits a channel, after its specification: rows with a filter's number, packed by zlib."""
    height, width, channels = values.shape
    raw = values.astype(">u2").tobytes()
    length = width * channels * 2
    rows = b"".join(b"\0" + raw[start : start + length] for start in range(0, len(raw), length))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_colours_of_16_bits_in_a_png_take_a_stated_range_with_all_their_bits():
    values = RGB.astype(np.uint16) + 700  # of which the high byte tells next to nothing
    np.testing.assert_array_equal(pixels(png16(values, 2), (700, 955)), RGB)
    alpha = np.full((*GREY.shape, 1), 65535, np.uint16)
    np.testing.assert_array_equal(pixels(png16(np.concatenate([values, alpha], -1), 6), (700, 955)), RGB)
    np.testing.assert_array_equal(pixels(png16(RGB16, 2)), RGB)
    with pytest.raises(BrokenImage, match=r"too few for data\.range or data\.depth=16; save it as TIFF"):
        pixels(png16(np.concatenate([values[..., :1], alpha], -1), 4), (700, 955))


def test_greyscale_of_16_bits_with_a_transparent_value():
    file = io.BytesIO()
    image = Image.fromarray(RGB16[..., 0])
    image.save(file, "PNG", transparency=int(RGB16[0, 0, 0]))
    np.testing.assert_array_equal(grey(file), np.where(GREY[0, 0] == GREY, 255, GREY))


def test_a_pgms_largest_value_is_white():
    values = GREY.astype(np.uint16) * 16
    file = io.BytesIO(b"P5 33 40 4080\n" + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(grey(file), GREY)
    np.testing.assert_array_equal(grey(file, (0, 2040)), np.minimum(GREY * 2.0, 255))


def test_the_colours_of_cielab():
    """L* = 53.585 is the grey 128 of sRGB (IEC 61966-2-1), and 0 and 100 are its black and white."""
    lab = np.zeros((1, 4, 3), np.uint8)
    lab[0, :, 0] = np.round(np.array([0, 53.585, 100, 53.585]) * 255 / 100)
    lab[0, 3, 1] = 60  # a* = 60: reddish
    got = pixels(tiff(lab, photometric="cielab"))[0].astype(int)
    assert np.abs(got[:3] - [[0], [128], [255]]).max() <= 1
    assert got[3, 0] > got[3, 1] + 100


def test_a_damaged_or_hostile_file_is_one_broken_image(monkeypatch):
    whole = tiff(RGB16, photometric="rgb", compression="deflate", rowsperstrip=4).getvalue()
    for data in (whole[:-200], whole[: len(whole) // 2]):
        with pytest.raises(BrokenImage, match=r"^x: "):
            pixels(io.BytesIO(data))
    with pytest.raises(BrokenImage, match="compression 7 is not read"):
        pixels(io.BytesIO(whole.replace(struct.pack("<HHII", 259, 3, 1, 32946), struct.pack("<HHII", 259, 3, 1, 7))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenImage, match="decompression bomb"):
        pixels(io.BytesIO(whole))


@pytest.mark.parametrize("options", [{}, {"tile": (64, 48)}, {"planarconfig": "separate"}, {"predictor": True}])
def test_an_image_in_one_strip_is_decoded_a_few_rows_at_a_time(monkeypatch, options):
    values = np.random.default_rng(0).integers(0, 4096, (70, 50, 3), np.uint16)
    stored = values
    if "planarconfig" in options:
        stored = np.ascontiguousarray(values.transpose(2, 0, 1))
    file = tiff(stored, photometric="rgb", compression="deflate", **options)
    monkeypatch.setattr(tiff_segments, "_BYTES_AT_ONCE", 3000)
    parts = []
    for row, part in read_tiff(file).read_rows(file):
        assert row == sum(map(len, parts))
        assert len(part) <= 30  # a row of a plane has a hundred bytes
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts), values)


class CountingFile(io.BytesIO):
    """A file that counts the bytes that are read of it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("tag", [273, 279])  # offsets, and numbers of bytes
def test_negative_numbers_do_not_read_a_file_again_for_every_strip(tag):
    """A count of -1 is that of all that is left: a file of a megabyte could ask for it 100,000 times."""
    signed_long = 9
    strips = 1000
    values = np.zeros((strips, 1), np.uint16)
    data = bytearray(tiff(values, compression="deflate", rowsperstrip=1).getvalue())
    for place in range(8, len(data), 2):
        number, kind, count = struct.unpack_from("<HHI", data, place)
        if (number, count) == (tag, strips):
            assert kind in (3, 4)
            struct.pack_into("<HHII", data, place, number, signed_long, count, len(data))
            break
    data += struct.pack(f"<{strips}i", *[-1] * strips)
    file = CountingFile(data)
    with pytest.raises(BrokenImage, match="negative"):
        decode_image(file, "x")
    assert file.count < 20 * len(data)


def test_the_head_says_the_size_of_what_pillow_cannot_open(tmp_path):
    file = tiff(UNIT, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    assert read_head(file, "x").seen_size == (40, 33)
    assert decode_image(file, "x").size == (40, 33)


def test_a_range_has_to_rise():
    assert load_config(DataConfig, {"range": [0, 4095]}, []).range == (0, 4095)
    with pytest.raises(ConfigError, match=r"range: .*should rise"):
        load_config(DataConfig, {"range": [4095, 0]}, [])


def test_a_run_says_how_deep_images_are_scaled_and_what_is_missing(tmp_path):
    values = UNIT[..., 0].copy()
    values[0, :3] = np.nan
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", GREY.astype(np.uint16) * 4)
    tifffile.imwrite(tmp_path / "c.tif", values)
    Image.fromarray(GREY).save(tmp_path / "d.png")
    deep, floating = describe_depths(open_source(DataConfig(source=str(tmp_path))))
    assert deep == (
        "2 of 4 images looked at have unsigned integers of 16 bits: 0 becomes black and 65535 white, by their type; "
        f"data.range=[black, white] states others; the largest value is {4 * int(GREY.max())}"
    )
    assert floating.endswith("; 3 pixels of 1 images are no numbers, infinite or marked as missing, and become black")
    stated = describe_depths(open_source(DataConfig(source=str(tmp_path), range=(0, 1020))))
    assert "0 becomes black and 1020 white, as data.range states" in stated[0]
