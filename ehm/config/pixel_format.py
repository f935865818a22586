"""The channels and the depth of images, as they lie in a file and as an encoder sees them. No framework here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = ["MOST_CHANNELS", "RGB_BYTES", "Depth", "PixelFormat"]

Depth = Literal[8, 16, "float"]
"""Bits of a value, or floating point."""
MOST_CHANNELS = 64
_TYPES: dict[Any, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16), "float": np.dtype(np.float32)}
_WHITES = {8: 255.0, 16: 65535.0, "float": 1.0}


@dataclass(frozen=True)
class PixelFormat:
    """The channels of an image, the depth of their values, and the values that are black and white.

    ``channels`` is their number or their names. ``range`` are the values of a file that become 0 and :attr:`white`;
    None takes them from the type of the values, or with ``window`` from what a DICOM file itself says. Images of three
    channels and 8 bits are photographs, whatever the file: grey, palettes, transparency and deeper values become R, G
    and B of 8 bits. All others are read as they are.
    """

    channels: int | tuple[str, ...] = 3
    depth: Depth = 8
    range: tuple[float, float] | None = None
    window: bool = False

    @property
    def count(self) -> int:
        """Number of channels."""
        return self.channels if isinstance(self.channels, int) else len(self.channels)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels, their numbers from 1 if they have none."""
        if isinstance(self.channels, int):
            return tuple(str(number) for number in _count_from_one(self.channels))
        return self.channels

    @property
    def is_rgb(self) -> bool:
        """True for photographs: three channels of 8 bits."""
        return self.count == 3 and self.depth == 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels in a sample."""
        return _TYPES[self.depth]

    @property
    def white(self) -> float:
        """Largest value of a pixel in a sample, which stands for 1."""
        return _WHITES[self.depth]

    @property
    def without_file_range(self) -> PixelFormat:
        """The format without the range of photographs, which says how deeper files are read and is no encoder's."""
        return RGB_BYTES if self.is_rgb else self

    def with_file_range(self, value_range: tuple[float, float] | None) -> PixelFormat:
        """Return the format for reading files, with the range of deeper ones if they become photographs."""
        return PixelFormat(range=value_range) if self.is_rgb else self

    def describe(self) -> str:
        """Return the format in words, for example "7 channels of 16 bits"."""
        bits = "floating point" if self.depth == "float" else f"{self.depth} bits"
        text = f"{self.count} channel{'' if self.count == 1 else 's'} of {bits}"
        if self.range is not None and not self.is_rgb:
            text += f" from {self.range[0]:g} to {self.range[1]:g}"
        return text

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON under the keys of the section ``data``; nothing for photographs, as in older files."""
        if self.is_rgb:
            return {}
        channels = self.channels if isinstance(self.channels, int) else list(self.channels)
        return {
            "channels": channels,
            "depth": self.depth,
            "range": None if self.range is None else list(self.range),
            "window": self.window,
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> PixelFormat:
        """Rebuild the format from its fields in ``values``; what is missing or null is usual.

        Raises ValueError or TypeError if a value is not one that its field may have.
        """
        channels = 3 if values.get("channels") is None else values["channels"]
        depth: Any = 8 if values.get("depth") is None else values["depth"]
        if not isinstance(channels, int):
            channels = tuple(map(str, channels))
        if depth not in _TYPES:
            raise ValueError(f"depth {depth!r} is unknown")
        found = cls(channels, depth)
        if not 1 <= found.count <= MOST_CHANNELS:
            raise ValueError(f"channels {channels}: not from 1 to {MOST_CHANNELS}")
        # the range of photographs is not the encoder's: it says how files of more bits are read
        if found.is_rgb:
            return found
        window = values.get("window") is True
        if values.get("range") is None:
            return cls(channels, depth, window=window)
        black, white = map(float, values["range"])
        return cls(channels, depth, (black, white), window)


def _count_from_one(count: int) -> Iterable[int]:
    # the builtin is hidden by a field inside the class
    return range(1, count + 1)


RGB_BYTES = PixelFormat()
"""Photographs in three channels of 8 bits."""
