"""Show images of any channels in colours, for pictures that people look at.

Shapes: images (..., H, W, C) become (..., H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config.pixel_format import PixelFormat

__all__ = ["ColourView", "choose_channels", "choose_view", "to_photograph"]

_NAMES = (("red", "r", "b04", "b4"), ("green", "g", "b03", "b3"), ("blue", "b", "b02", "b2"))
"""Names of the channels that are red, green and blue, in any case; the last ones are Sentinel-2's."""
_DARKEST = 2
_BRIGHTEST = 98
"""Percentiles of a channel that are shown black and white: the full range of 16 bits is mostly dark."""


@dataclass(frozen=True)
class ColourView:
    """The ``channels`` to show as red, green and blue, and their values (3,) that are ``black`` and ``white``.

    ``names`` are those of all channels of an image.
    """

    channels: tuple[int, int, int]
    black: NDArray[np.float64]
    white: NDArray[np.float64]
    names: tuple[str, ...]

    def show(self, images: NDArray[Any]) -> NDArray[np.uint8]:
        """Return images (..., C) as bytes (..., 3)."""
        shares = (images[..., list(self.channels)] - self.black) / (self.white - self.black)
        return (255 * shares.clip(0, 1)).round().astype(np.uint8)

    def describe(self) -> str:
        """Return which channels are shown, in a sentence."""
        if len(set(self.channels)) == 1:
            what = f"Channel {self.names[self.channels[0]]} is shown in grey"
        else:
            red, green, blue = (self.names[channel] for channel in self.channels)
            what = f"Channels {red}, {green} and {blue} are shown as red, green and blue"
        return f"{what}, from their {_DARKEST}nd to their {_BRIGHTEST}th percentile."


def choose_channels(names: Sequence[str]) -> tuple[int, int, int]:
    """Return the channels to show as red, green and blue: those of these names, else the first three."""
    count = len(names)
    lower = [name.lower() for name in names]
    found = []
    for known in _NAMES:
        found += [lower.index(name) for name in known if name in lower][:1]
    if len(found) == 3:
        return found[0], found[1], found[2]
    return 0, min(1, count - 1), 2 if count > 2 else 0


def choose_view(images: NDArray[Any], pixels: PixelFormat) -> ColourView:
    """Return a view in which ``images`` (n, H, W, C) of ``pixels`` are neither dark nor pale."""
    channels = choose_channels(pixels.names)
    shown = images[..., list(channels)].reshape(-1, 3)
    black, white = np.percentile(shown, [_DARKEST, _BRIGHTEST], axis=0).astype(np.float64)
    white = np.maximum(white, black + pixels.white / 255)  # a channel may be the same everywhere
    return ColourView(channels, black, white, pixels.names)


def to_photograph(image: Any, pixels: PixelFormat) -> Image.Image:
    """Return an image of a source as Pillow's: a photograph as it is, channels (H, W, C) in colours of their own."""
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray(choose_view(image[None], pixels).show(image))
