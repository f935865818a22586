"""One image file to its channels as they are, for images that are no photographs.

    TIFF, GeoTIFF    the values of a pixel, or those of all pages; reduced versions and masks are left out
    DICOM            the value of a pixel, its colours, or its frames (:mod:`ehm.data.decoding.dicom`)
    .npy             the array (:mod:`ehm.data.decoding.npy`)
    others           what Pillow reads; a palette's colours

Nothing is added or left out: a file with other channels or another depth than the model's is refused. Values are scaled
(:mod:`ehm.data.decoding.stored_channels`) so that 0 is black and the largest value of the depth white, which follow
from the type of the values or are stated. Values that are no numbers, or that the file declares to stand for missing
data, become 0.

Shapes: H x W pixels of C channels.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config.pixel_format import MOST_CHANNELS, PixelFormat
from ehm.data.decoding.decode import SUFFIXES, decode_image, name_errors, open_binary, read_head
from ehm.data.decoding.deep import find_raw_mode, read_grey_values, read_sixteen_bits
from ehm.data.decoding.depth import describe_values
from ehm.data.decoding.dicom import count_dicom_channels, is_dicom, open_dicom, read_dicom, read_dicom_size
from ehm.data.decoding.limits import refuse_bomb
from ehm.data.decoding.npy import is_npy, read_npy, read_npy_size
from ehm.data.decoding.orientation import read_orientation, turn_array
from ehm.data.decoding.stored_channels import StoredChannels, check_count, scale_channels
from ehm.data.decoding.tiff import PALETTE, WHITE_IS_ZERO, Tiff, is_tiff, read_pages
from ehm.data.decoding.tiff_segments import BYTE_CODECS
from ehm.data.decoding.tiff_tags import Tag
from ehm.errors import BrokenImage

__all__ = [
    "CHANNEL_SUFFIXES",
    "load_image",
    "read_channels",
    "read_channels_size",
    "read_stored_channels",
]

CHANNEL_SUFFIXES = SUFFIXES | {".dcm", ".dicom", ".npy"}
"""Suffixes of files that images of channels are read from, in any case."""
_PLAIN_MODES = ("L", "LA", "RGB", "RGBA", "CMYK")
"""Pillow's modes whose values are those of the file."""


def load_image(file: str | Path | BytesIO, pixels: PixelFormat, name: str | None = None) -> Any:
    """Read an image for a model of ``pixels``: Pillow's in RGB for photographs, else its channels (H, W, C).

    Raises BrokenImage with ``name`` (the path if left out) and the reason.
    """
    if pixels.is_rgb:
        return decode_image(file, name, value_range=pixels.range)
    return read_channels(file, pixels, name)


def read_channels(file: str | Path | BytesIO, pixels: PixelFormat, name: str | None = None) -> NDArray[Any]:
    """Read the channels of an image: (H, W, C) of the type of ``pixels``, from 0 to its white.

    Raises BrokenImage with ``name`` (the path if left out) and the reason, also if its channels or its depth are
    others than those of ``pixels``.
    """
    if name is None:
        name = str(file)
    stored = read_stored_channels(file, name, pixels, only_fitting=True)
    with name_errors(name):
        return scale_channels(stored, pixels, name)


def read_stored_channels(
    file: str | Path | BytesIO, name: str, pixels: PixelFormat, only_fitting: bool = False
) -> StoredChannels:
    """Read the values of an image as they are stored; errors are as in :func:`read_channels`.

    Of ``pixels`` only the number of channels counts, which tells the axes of an array, the range, and the window.
    With ``only_fitting``, a file that says in its head that it has other channels is refused before it is unpacked: a
    small one may hold many large pages.
    """
    with name_errors(name), open_binary(file) as stream:
        if is_npy(stream):
            values = read_npy(stream, name, pixels.count)
            return StoredChannels(values, 8 * values.dtype.itemsize)
        if is_dicom(stream):
            return _read_dicom(stream, name, pixels, only_fitting)
        if is_tiff(stream):
            stored = _read_tiff(stream, name, pixels, only_fitting)
            if stored is not None:
                return stored
        stream.seek(0)
        with Image.open(stream) as image:
            return _read_picture(image, stream, name, pixels)


def read_channels_size(file: str | Path | BytesIO, name: str, formats: tuple[str, ...]) -> tuple[int, int]:
    """Return the width and height of an image without reading its pixels; errors are as in :func:`read_channels`.

    ``formats`` are Pillow's names of the pictures to try.
    """
    with name_errors(name), open_binary(file) as stream:
        if is_npy(stream):
            return read_npy_size(stream, name)
        if is_dicom(stream):
            return read_dicom_size(stream, name)
        if is_tiff(stream):
            width, height = next(iter(read_pages(stream, MOST_CHANNELS))).size
            return width, height
    return read_head(file, name, formats).seen_size


def _read_dicom(stream: IO[bytes], name: str, pixels: PixelFormat, only_fitting: bool) -> StoredChannels:
    dataset = open_dicom(stream, name)
    if only_fitting:
        kind = "i" if dataset.PixelRepresentation else "u"
        channels = count_dicom_channels(dataset)
        check_count(channels, np.dtype(f"{kind}2"), int(dataset.BitsStored), pixels, name)
    found = read_dicom(dataset, name)
    value_range = found.window if pixels.window else found.full_range
    if value_range is None:
        raise BrokenImage(f"{name}: names no window; data.window=false takes the full range of its bits")
    return StoredChannels(found.values, found.bits, None, value_range, found.white_is_zero)


def _read_tiff(stream: IO[bytes], name: str, pixels: PixelFormat, only_fitting: bool) -> StoredChannels | None:
    """Read all pages of a TIFF file; None if Pillow has to, because they are packed in a way that suits 8 bits only."""
    pages = read_pages(stream, MOST_CHANNELS)
    if not pages:
        raise BrokenImage(f"{name}: has reduced versions of an image and masks, and no image")
    first = pages[0]
    is_packed = first.tags.get(Tag.COMPRESSION, 1) not in BYTE_CODECS
    if len(pages) == 1 and first.bits == 8 and (is_packed or first.photometric == PALETTE):
        return None
    for page in pages[1:]:
        if (page.size, page.dtype, page.bits) != (first.size, first.dtype, first.bits):
            raise BrokenImage(
                f"{name}: its pages differ in size or depth ({_describe_page(first)}, {_describe_page(page)}); pages "
                "that are channels are alike"
            )
    refuse_bomb(*first.size)
    channels = sum(page.samples for page in pages)
    if channels > MOST_CHANNELS:
        raise BrokenImage(f"{name}: has {len(pages)} pages with {channels} channels; up to {MOST_CHANNELS} are read")
    if only_fitting:
        check_count(channels, first.dtype, first.bits, pixels, name)
    values = np.empty((first.size[1], first.size[0], channels), first.dtype)
    channel = 0
    for page in pages:
        for row, rows in page.read_rows(stream):
            values[row : row + len(rows), :, channel : channel + page.samples] = rows
        channel += page.samples
    upright = turn_array(values, first.orientation)
    is_inverted = first.photometric == WHITE_IS_ZERO and first.samples == 1
    return StoredChannels(upright, first.bits, first.missing_value, None, is_inverted)


def _describe_page(page: Tiff) -> str:
    width, height = page.size
    return f"{height} x {width} of {describe_values(page.dtype, page.bits)}"


def _read_picture(image: Image.Image, stream: IO[bytes], name: str, pixels: PixelFormat) -> StoredChannels:
    """Read what Pillow has opened, in as many bits as the file has."""
    orientation = read_orientation(image)
    bits = 8
    values: NDArray[Any]
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = read_grey_values(image, pixels.range)[:, :, None]
        bits = 16 if values.dtype == np.uint16 else 32
    elif ";16" in find_raw_mode(image):
        values = read_sixteen_bits(image, stream, name)
        bits = 16
    else:
        mode = image.mode
        if mode == "1":
            image = image.convert("L")
        elif mode not in _PLAIN_MODES:
            image = image.convert("RGB")
        values = np.asarray(image)
        if values.ndim == 2:
            values = values[:, :, None]
    return StoredChannels(turn_array(values, orientation), bits)
