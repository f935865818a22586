"""Image files from strangers: the formats that are read, and the sizes that they may unpack to."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from ehm.data.decoding.decode import decode_image, read_head
from ehm.data.decoding.depth import ValueRange
from ehm.errors import BrokenImage, RequestError

__all__ = ["FORMATS", "read_image"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The formats that are read, by Pillow's names. It knows others that start programs (EPS) or are hardly tested."""


def read_image(
    data: bytes, max_pixels: int, enough: tuple[int, int] | None = None, value_range: ValueRange = None
) -> Image.Image:
    """Turn a file's bytes into an image.

    ``enough`` and ``value_range``, the model's, are as in `decode_image`. Raises RequestError: 413 for more than
    ``max_pixels``, 422 for a file that cannot be read.
    """
    if not data:
        raise RequestError(422, f"the image is empty: expected a file of a known format: {', '.join(FORMATS)}")
    # the size is checked in the header, before anything is unpacked: a small file can hold a huge image
    try:
        width, height = read_head(BytesIO(data), "the image", FORMATS).seen_size
    except BrokenImage as error:
        if "decompression bomb" in str(error):
            raise RequestError(413, f"the image has more than {max_pixels} pixels") from None
        raise RequestError(422, f"not an image of a known format: {', '.join(FORMATS)}") from None
    if width * height > max_pixels:
        raise RequestError(413, f"the image has {width} x {height} pixels, more than {max_pixels}")
    if width * height == 0:
        raise RequestError(422, "the image has no pixels")
    try:
        return decode_image(BytesIO(data), "the image", FORMATS, enough, value_range)
    except BrokenImage as error:
        raise RequestError(422, str(error)) from None
