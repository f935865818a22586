"""Scale values of more than 8 bits to bytes: choose the values that become black and white.

They are never the smallest and the largest value of an image: one pixel would decide over all others, and frames of one
scene would differ in brightness. A range is stated by the user (``data.range``), or follows from the type of the
values:

    unsigned, up to 16 bits    0 to 2**bits - 1, the bits that the file says they have
    floating point             0 to 1
    signed, or of 32 bits      unknown: refused, with the key that states it

Values outside the range become black or white. Those that are no numbers, infinite, or what the file declares to stand
for missing data are left out: they become black, and are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.errors import BrokenImage

__all__ = [
    "DEPTH",
    "Depth",
    "DepthReader",
    "ValueRange",
    "convert_to_type",
    "count_missing",
    "describe_values",
    "find_range",
]

ValueRange = tuple[float, float] | None
"""The values that are black and white in images of more than 8 bits; None for those that follow from their type."""
DEPTH = "ehm_depth"
"""The key of an image's ``info`` under which its `Depth` stands, if it was deeper than 8 bits."""
_MOST_OUTSIDE = 0.01
"""Share of floating-point values that may lie outside 0 to 1, by more than resampling overshoots, before it is clear
that this is not their range."""
_OVERSHOOT = 0.1
"""The distance from 0 and from 1 up to which a value may be the overshoot of a filter at an edge."""
_KINDS = {"f": "floating-point values", "i": "signed integers", "u": "unsigned integers"}
_REMEDY = "data.range=[black, white] states it, where the model is trained"


@dataclass(frozen=True)
class Depth:
    """The scaling of an image of more than 8 bits.

    ``kind`` are its values in words; ``black`` and ``white`` the values that became 0 and 255, ``largest`` the largest
    of them, ``missing`` the number of pixels that were left out, and ``stated`` whether a user stated the range.
    """

    kind: str
    black: float
    white: float
    largest: float
    missing: int
    stated: bool


class DepthReader:
    """A converter of the values of one image to bytes, part by part.

    ``dtype`` and ``bits`` are those of the file's values, ``value_range`` is stated by the user, ``missing_value`` is
    declared by the file to stand for missing data; ``white_is_zero`` exchanges black and white. Raises BrokenImage,
    which begins with ``name``, if the range is neither stated nor known.
    """

    def __init__(
        self,
        name: str,
        dtype: np.dtype[Any],
        bits: int,
        value_range: ValueRange,
        missing_value: float | None = None,
        white_is_zero: bool = False,
    ) -> None:
        self._name = name
        self._floating = dtype.kind == "f"
        self._kind = describe_values(dtype, bits)
        self._stated = value_range is not None
        self._missing_value = None
        if missing_value is not None:
            self._missing_value = convert_to_type(missing_value, dtype)
        self._missing = 0
        self._values = 0
        self._outside = 0
        self._largest = -np.inf
        black, white = find_range(name, dtype, bits, value_range)
        if white_is_zero:
            black, white = white, black
        self._black = black
        self._white = white

    def scale_values(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Scale values (h, w, S) to bytes. A pixel is black if any of its values is no number, or all are missing."""
        missing = np.zeros(values.shape[:2], bool)
        if self._floating:
            missing |= ~np.isfinite(values).all(axis=2)
        if self._missing_value is not None:
            missing |= (values == self._missing_value).all(axis=2)
        self._missing += int(missing.sum())
        # most images have no missing values, and need no copy here
        present = values[~missing] if missing.any() else values.reshape(-1, values.shape[2])
        if present.size:  # a part may be missing as a whole
            self._largest = max(self._largest, float(present.max()))
        if self._floating and not self._stated:
            self._values += present.size
            # one value far outside is damage, many are another range
            self._outside += int(((present < -_OVERSHOOT) | (present > 1 + _OVERSHOOT)).sum())
        scaled = np.zeros(values.shape, np.uint8)
        shares = (present.astype(np.float64) - self._black) / (self._white - self._black)
        scaled[~missing] = np.round(255 * shares.clip(0, 1)).astype(np.uint8)
        return scaled

    def describe_scaling(self) -> Depth:
        """Describe how the image was scaled; raises BrokenImage if it is of floating point, and not of 0 to 1."""
        if self._outside > max(1, _MOST_OUTSIDE * self._values):
            raise BrokenImage(
                f"{self._name}: has {self._kind}, of which {self._outside / self._values:.0%} lie outside 0 to 1, the "
                f"largest being {self._largest:g}; {_REMEDY}"
            )
        largest = self._largest if np.isfinite(self._largest) else self._black
        return Depth(self._kind, self._black, self._white, largest, self._missing, self._stated)


def find_range(name: str, dtype: np.dtype[Any], bits: int, value_range: ValueRange) -> tuple[float, float]:
    """Return the values that are black and white: those stated in ``value_range``, or else those of the type.

    Raises BrokenImage, which begins with ``name``, if neither is known.
    """
    if value_range is not None:
        return value_range
    if dtype.kind == "f":
        return 0.0, 1.0
    if dtype.kind == "u" and bits <= 16:
        return 0.0, float(2**bits - 1)
    raise BrokenImage(f"{name}: has {describe_values(dtype, bits)}, whose range is not known; {_REMEDY}")


def describe_values(dtype: np.dtype[Any], bits: int) -> str:
    """Return the kind of values in words, for example "unsigned integers of 16 bits"."""
    return f"{_KINDS[dtype.kind]} of {bits} bits"


def convert_to_type(value: float, dtype: np.dtype[Any]) -> Any:
    """Return a number in an image's own type, in which 1e-20 may be another one; None if the type lacks it."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(value)
    limits = np.iinfo(dtype)
    if value.is_integer() and limits.min <= value <= limits.max:
        return int(value)
    return None


def count_missing(image: Any) -> int:
    """Return the number of pixels of a decoded photograph that its file gives no values for."""
    if not isinstance(image, Image.Image):
        return 0
    depth = image.info.get(DEPTH)
    return depth.missing if isinstance(depth, Depth) else 0
