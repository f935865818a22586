"""One image file to its channels as they are, for images that are no photographs.

    TIFF, GeoTIFF    the values of a pixel, or those of all pages; reduced versions and masks are left out
    DICOM            the value of a pixel, its colours, or its frames (:mod:`ehm.data.decoding.dicom`)
    .npy             the array (:mod:`ehm.data.decoding.npy`)
    others           what Pillow reads; a palette's colours

Nothing is added or left out: a file with other channels or another depth than the model's is refused. Values are scaled
so that 0 is black and the largest value of the depth white, which follow from the type of the values or are stated.
Values that are no numbers, or that the file declares to stand for missing data, become 0.

Shapes: H x W pixels of C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config.pixel_format import MOST_CHANNELS, PixelFormat
from ehm.data.decoding.decode import SUFFIXES, decode_image, name_errors, open_binary, read_head
from ehm.data.decoding.deep import raw_mode, read_grey_values, read_sixteen_bits
from ehm.data.decoding.depth import ValueRange, as_type, describe_values, find_range
from ehm.data.decoding.dicom import is_dicom, read_dicom, read_dicom_size
from ehm.data.decoding.npy import is_npy, read_npy, read_npy_size
from ehm.data.decoding.orientation import read_orientation, turn_array
from ehm.data.decoding.tiff import WHITE_IS_ZERO, Tiff, is_tiff, read_pages
from ehm.data.decoding.tiff_segments import BYTE_CODECS, COMPRESSION
from ehm.errors import BrokenImage

__all__ = [
    "CHANNEL_SUFFIXES",
    "StoredChannels",
    "load_image",
    "read_channels",
    "read_channels_size",
    "read_stored_channels",
]

CHANNEL_SUFFIXES = SUFFIXES | {".dcm", ".dicom", ".npy"}
"""Suffixes of files that images of channels are read from, in any case."""
_PALETTE = 3
_PLAIN_MODES = ("L", "LA", "RGB", "RGBA", "CMYK")
"""Pillow's modes whose values are those of the file."""


@dataclass(frozen=True)
class StoredChannels:
    """The values (H, W, C) of an image as they are stored, upright, and what they mean.

    They have ``bits`` bits. ``missing_value`` stands for missing data, if there is one; ``range`` are the values that
    the file itself says are black and white, if it does; ``white_is_zero`` exchanges the two.
    """

    values: NDArray[Any]
    bits: int
    missing_value: float | None = None
    range: ValueRange = None
    white_is_zero: bool = False

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        """Mark the values that are no numbers, infinite or declared to be missing: (H, W, C)."""
        missing = np.zeros(self.values.shape, bool)
        if self.values.dtype.kind == "f":
            missing = ~np.isfinite(self.values)
        if self.missing_value is not None:
            value = as_type(self.missing_value, self.values.dtype)
            if value is not None:
                missing |= self.values == value
        return missing

    def describe(self) -> str:
        """Return the channels and the kind of values in words."""
        count = self.values.shape[2]
        return f"{count} channel{'' if count == 1 else 's'} of {describe_values(self.values.dtype, self.bits)}"


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
    stored = read_stored_channels(file, name, pixels)
    with name_errors(name):
        return _scale(stored, pixels, name)


def read_stored_channels(file: str | Path | BytesIO, name: str, pixels: PixelFormat) -> StoredChannels:
    """Read the values of an image as they are stored; errors are as in :func:`read_channels`.

    Of ``pixels`` only the number of channels counts, which tells the axes of an array, the range, and the window.
    """
    with name_errors(name), open_binary(file) as stream:
        if is_npy(stream):
            values = read_npy(stream, name, pixels.count)
            return StoredChannels(values, 8 * values.dtype.itemsize)
        if is_dicom(stream):
            return _read_dicom(stream, name, pixels)
        if is_tiff(stream):
            stored = _read_tiff(stream, name)
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


def _read_dicom(stream: IO[bytes], name: str, pixels: PixelFormat) -> StoredChannels:
    found = read_dicom(stream, name)
    value_range = found.window if pixels.window else found.full_range
    if value_range is None:
        raise BrokenImage(f"{name}: names no window; data.window=false takes the full range of its bits")
    return StoredChannels(found.values, found.bits, None, value_range, found.white_is_zero)


def _read_tiff(stream: IO[bytes], name: str) -> StoredChannels | None:
    """Read all pages of a TIFF file; None if Pillow has to, because they are packed in a way that suits 8 bits only."""
    pages = read_pages(stream, MOST_CHANNELS)
    if not pages:
        raise BrokenImage(f"{name}: has reduced versions of an image and masks, and no image")
    first = pages[0]
    is_packed = first.tags.get(COMPRESSION, 1) not in BYTE_CODECS
    if len(pages) == 1 and first.bits == 8 and (is_packed or first.photometric == _PALETTE):
        return None
    for page in pages[1:]:
        if (page.size, page.dtype, page.bits) != (first.size, first.dtype, first.bits):
            raise BrokenImage(
                f"{name}: its pages differ in size or depth ({_describe_page(first)}, {_describe_page(page)}); pages "
                "that are channels are alike"
            )
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and first.size[0] * first.size[1] > limit:
        raise Image.DecompressionBombError
    channels = sum(page.samples for page in pages)
    if channels > MOST_CHANNELS:
        raise BrokenImage(f"{name}: has {len(pages)} pages with {channels} channels; up to {MOST_CHANNELS} are read")
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
    elif ";16" in raw_mode(image):
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


def _scale(stored: StoredChannels, pixels: PixelFormat, name: str) -> NDArray[Any]:
    """Scale the stored values so that black is 0 and white that of ``pixels``; BrokenImage if they are not its own."""
    _check_format(stored, pixels, name)
    values = stored.values
    is_deep = stored.bits > 8 or values.dtype.kind != "u"
    value_range = pixels.range if is_deep else None
    value_range = value_range or stored.range
    if values.dtype.kind == "f" and value_range is None:
        raise BrokenImage(f"{name}: has {stored.describe()}; data.range states which of them are black and white")
    black, white = find_range(name, values.dtype, stored.bits, value_range)
    if stored.white_is_zero:
        black, white = white, black
    missing = stored.is_missing
    if values.dtype == pixels.dtype and (black, white) == (0, pixels.white):
        scaled = values.copy()
    else:
        # float64, in which products of 32 bits are exact enough
        shares = ((values.astype(np.float64) - black) / (white - black)).clip(0, 1) * pixels.white
        if pixels.dtype.kind == "u":
            shares = np.rint(np.where(missing, 0, shares))
        scaled = shares.astype(pixels.dtype)
    if pixels.dtype.kind == "f" and values.dtype == pixels.dtype:
        scaled = scaled.clip(0, 1)
    scaled[missing] = 0
    return np.ascontiguousarray(scaled)


def _check_format(stored: StoredChannels, pixels: PixelFormat, name: str) -> None:
    """Raise BrokenImage if the stored values have other channels, or too few or too many bits for the depth."""
    if stored.values.shape[2] != pixels.count:
        raise BrokenImage(f"{name}: has {stored.describe()}, and the model takes {pixels.describe()} (data.channels)")
    is_float = stored.values.dtype.kind == "f" and stored.range is None
    if pixels.depth == 16 and (is_float or not 8 < stored.bits <= 16):
        raise BrokenImage(
            f"{name}: has {stored.describe()}, and the model takes {pixels.describe()}; data.depth 16 reads integers "
            "of 9 to 16 bits"
        )
    if pixels.depth == "float" and stored.bits <= 8:
        raise BrokenImage(
            f"{name}: has {stored.describe()}, and the model takes {pixels.describe()}; data.depth float reads values "
            "of more than 8 bits"
        )
