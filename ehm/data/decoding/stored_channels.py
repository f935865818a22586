"""The values of an image's channels as a file has them, and scaled as a model of a channel format takes them.

Shapes: H x W pixels of C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config.pixel_format import PixelFormat
from ehm.data.decoding.depth import ValueRange, convert_to_type, describe_values, find_range
from ehm.errors import BrokenImage

__all__ = ["StoredChannels", "check_count", "scale_channels"]


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
            value = convert_to_type(self.missing_value, self.values.dtype)
            if value is not None:
                missing |= self.values == value
        return missing

    def describe(self) -> str:
        """Return the channels and the kind of values in words."""
        return _describe_channels(self.values.shape[2], self.values.dtype, self.bits)


def scale_channels(stored: StoredChannels, pixels: PixelFormat, name: str) -> NDArray[Any]:
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
    check_count(stored.values.shape[2], stored.values.dtype, stored.bits, pixels, name)
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


def check_count(count: int, dtype: np.dtype[Any], bits: int, pixels: PixelFormat, name: str) -> None:
    """Raise BrokenImage if an image with ``count`` channels has not as many as the model takes."""
    if count != pixels.count:
        found = _describe_channels(count, dtype, bits)
        raise BrokenImage(f"{name}: has {found}, and the model takes {pixels.describe()} (data.channels)")


def _describe_channels(count: int, dtype: np.dtype[Any], bits: int) -> str:
    return f"{count} channel{'' if count == 1 else 's'} of {describe_values(dtype, bits)}"
