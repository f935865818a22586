"""Image files from strangers: the formats that are read, and the sizes that they may unpack to.

A model of images that are no photographs takes TIFF, ``.npy`` and DICOM besides, in just its channels and depth.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image

from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.data.decoding.channels import read_channels, read_channels_size
from ehm.data.decoding.decode import decode_image, read_head
from ehm.errors import BrokenImage, RequestError

__all__ = ["FORMATS", "measure_size", "read_image"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The formats that are read, by Pillow's names. It knows others that start programs (EPS) or are hardly tested."""


def read_image(
    data: bytes, max_pixels: int, enough: tuple[int, int] | None = None, pixels: PixelFormat = RGB_BYTES
) -> Any:
    """Turn a file's bytes into an image for a model of ``pixels``: Pillow's of a photograph, or an array (H, W, C).

    ``enough``, the model's, is as in `decode_image`. Raises RequestError: 413 for more than ``max_pixels``, 422 for a
    file that cannot be read, or that has other channels or another depth.
    """
    formats = FORMATS if pixels.is_rgb else (*FORMATS, "npy", "DICOM")
    if not data:
        raise RequestError(422, f"the image is empty: expected a file of a known format: {', '.join(formats)}")
    # the size is checked in the header, before anything is unpacked: a small file can hold a huge image
    try:
        if pixels.is_rgb:
            width, height = read_head(BytesIO(data), "the image", FORMATS).seen_size
        else:
            width, height = read_channels_size(BytesIO(data), "the image", FORMATS)
    except BrokenImage as error:
        if "decompression bomb" in str(error):
            raise RequestError(413, f"the image has more than {max_pixels} pixels") from None
        raise RequestError(422, f"not an image of a known format: {', '.join(formats)}") from None
    if width * height > max_pixels:
        raise RequestError(413, f"the image has {width} x {height} pixels, more than {max_pixels}")
    if width * height == 0:
        raise RequestError(422, "the image has no pixels")
    try:
        if not pixels.is_rgb:
            return read_channels(BytesIO(data), pixels, "the image")
        return decode_image(BytesIO(data), "the image", FORMATS, enough, pixels.range)
    except BrokenImage as error:
        raise RequestError(422, str(error)) from None


def measure_size(image: Any) -> tuple[int, int]:
    """Return the width and height of an image that `read_image` gave."""
    if isinstance(image, Image.Image):
        return image.size
    height, width = image.shape[:2]
    return width, height
