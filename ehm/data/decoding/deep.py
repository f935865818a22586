"""Images of more than 8 bits as images of Pillow's of 8 bits, not yet turned upright or composited.

Pillow gives the high byte of colours of 16 bits, and does not know what greyscale of more than 8 bits means.
"""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from ehm.data.decoding.depth import Depth, DepthReader, ValueRange
from ehm.data.decoding.limits import refuse_bomb
from ehm.data.decoding.tiff import BLACK_IS_ZERO, CMYK, RGB, WHITE_IS_ZERO, Tiff
from ehm.errors import BrokenImage

__all__ = ["find_raw_mode", "read_deep_pixels", "read_deep_tiff", "read_grey_values", "read_sixteen_bits"]

_COLOURS = {WHITE_IS_ZERO: "L", BLACK_IS_ZERO: "L", RGB: "RGB", CMYK: "CMYK"}
# TIFF's numbers of the kinds of a further sample
_PREMULTIPLIED = 1
_ALPHA = 2
_OTHER_BYTE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Pillow's unpackers of the other byte of each value, by the one that it takes by itself."""


def read_deep_tiff(tiff: Tiff, file: IO[bytes], name: str, value_range: ValueRange) -> tuple[Image.Image, Depth]:
    """Return the stored pixels of a TIFF file, and how they were scaled.

    Raises BrokenImage if the range of its values or its colours are not known, OSError if it is damaged.
    """
    mode = _COLOURS.get(tiff.photometric)
    if mode is None:
        raise BrokenImage(
            f"{name}: TIFF's photometric interpretation {tiff.photometric} is not read in {tiff.bits} bits"
        )
    colours = len(mode)
    if tiff.samples < colours:
        raise BrokenImage(f"{name}: has {tiff.samples} values a pixel, and its colours have {colours}")
    alpha = 0
    if tiff.extra:
        alpha = tiff.extra[0]
    elif mode == "RGB" and tiff.samples == 4:
        alpha = _ALPHA  # many writers leave the tag out
    has_alpha = alpha in (_PREMULTIPLIED, _ALPHA) and mode != "CMYK" and tiff.samples > colours
    refuse_bomb(*tiff.size)
    white_is_zero = tiff.photometric == WHITE_IS_ZERO
    reader = DepthReader(name, tiff.dtype, tiff.bits, value_range, tiff.missing_value, white_is_zero)
    opaque = 1.0 if tiff.dtype.kind == "f" else float(2**tiff.bits - 1)
    # opacity is neither inverted nor ever missing
    opacity = DepthReader(name, tiff.dtype, tiff.bits, (0.0, opaque))
    pixels = np.zeros((tiff.size[1], tiff.size[0], colours + has_alpha), np.uint8)
    for row, values in tiff.read_rows(file):
        part = pixels[row : row + len(values)]
        part[:, :, :colours] = reader.scale_values(values[:, :, :colours])
        if has_alpha:
            part[:, :, colours:] = opacity.scale_values(values[:, :, colours : colours + 1])
    if has_alpha:
        mode += "a" if alpha == _PREMULTIPLIED else "A"
    return Image.frombytes(mode, tiff.size, pixels.tobytes()), reader.describe_scaling()


def read_deep_pixels(
    image: Image.Image, file: IO[bytes], name: str, value_range: ValueRange
) -> tuple[Image.Image, Depth] | None:
    """Return the stored pixels of an image that Pillow has opened, and how they were scaled; None for 8 bits.

    ``file`` is the open file. Colours of 16 bits are left to Pillow, which scales by their type, unless there is a
    ``value_range``. Raises BrokenImage if Pillow does not give all of their bits.
    """
    stored_as = find_raw_mode(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = read_grey_values(image, value_range)
        bits = 16 if values.dtype == np.uint16 else 32
        reader = DepthReader(name, values.dtype, bits, value_range)
        pixels = Image.fromarray(reader.scale_values(values[:, :, None])[:, :, 0])
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
            pixels = Image.merge("LA", (pixels, Image.fromarray(alpha)))
        return pixels, reader.describe_scaling()
    if value_range is None or ";16" not in stored_as:
        return None
    values = read_sixteen_bits(image, file, name)
    reader = DepthReader(name, values.dtype, 16, value_range)
    colours = reader.scale_values(values[:, :, :3])
    if values.shape[2] == 4:
        # opacity by its type: a stated range is one of colours
        colours = np.concatenate([colours, (values[:, :, 3:] >> 8).astype(np.uint8)], axis=2)
    return Image.fromarray(colours), reader.describe_scaling()


def read_sixteen_bits(image: Image.Image, file: IO[bytes], name: str) -> NDArray[np.uint16]:
    """Return the colours (H, W, S) of 16 bits of an image that Pillow has opened, of which it gives the high bytes.

    Raises BrokenImage, which begins with ``name``, for files whose low bytes Pillow does not give.
    """
    stored_as = find_raw_mode(image)
    if stored_as not in _OTHER_BYTE:
        raise BrokenImage(
            f"{name}: its colours have 16 bits, of which only 8 are read from this kind of file, too few for "
            "data.range or data.depth=16; save it as TIFF, or as PNG without transparency"
        )
    high = np.asarray(image, np.uint16)
    file.seek(0)
    with Image.open(file, formats=[image.format or ""]) as again:
        again.tile = [tile._replace(args=_OTHER_BYTE[stored_as]) for tile in again.tile]
        values: NDArray[np.uint16] = high * 256 + np.asarray(again)
    return values


def find_raw_mode(image: Image.Image) -> str:
    """Return how the values lie in the file, in the words of Pillow's decoders, before its pixels are read.

    Empty if the decoder of a format has no word for it.
    """
    if not isinstance(image, ImageFile) or not image.tile:
        return ""
    arguments = image.tile[0].args
    if isinstance(arguments, tuple) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def read_grey_values(image: Image.Image, value_range: ValueRange) -> NDArray[Any]:
    """Return the values (H, W) of greyscale of more than 8 bits, in the type that they have in the file."""
    largest = 65535
    if image.format == "PPM" and isinstance(image, ImageFile) and isinstance(image.tile[0].args, tuple):
        largest = image.tile[0].args[1]
    values = np.asarray(image)
    if image.format == "PPM" and image.mode == "I":
        # Pillow has made white 65535, which is right unless a range is stated for the values of the file
        if value_range is not None:
            values = np.round(values * (largest / 65535))
        return values.astype(np.uint16)
    if image.format == "PNG" or image.mode.startswith("I;16"):
        return values.astype(np.uint16)  # some versions of Pillow give 32 bits
    return values
