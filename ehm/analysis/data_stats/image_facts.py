"""The facts of one image of a source: its size, its channels, their moments, and a key of its bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.analysis.data_stats.channel_moments import ChannelMoments, measure_channels
from ehm.config.pixel_format import PixelFormat
from ehm.data import Source
from ehm.data.decoding.channels import StoredChannels, read_stored_channels
from ehm.data.sources.identity import hash_images
from ehm.errors import BrokenImage

__all__ = ["ImageFacts", "examine_image", "guess_format"]

_LOOKED_AT = 16
_THUMBNAIL = 160
"""Side in pixels that an image is thinned out to, at most."""


@dataclass(frozen=True)
class ImageFacts:
    """The facts of an image; if it cannot be read, ``problem`` says why and the rest is empty.

    ``kind`` are its channels and their values in words, ``type_range`` the values that are black and white by their
    type, None if that does not say. ``thumbnail`` (h, w, C) is there if it was asked for.
    """

    name: str
    key: int
    size: tuple[int, int] = (0, 0)
    kind: str = ""
    type_range: tuple[float, float] | None = None
    moments: ChannelMoments | None = None
    thumbnail: NDArray[Any] | None = None
    problem: str | None = None


def examine_image(source: Source, index: int, pixels: PixelFormat, with_thumbnail: bool) -> ImageFacts:
    """Return the facts of image ``index`` of ``source``, for a model of ``pixels``.

    Moments of photographs are those of their bytes; those of other images are of the values as they are stored.
    """
    name = source.name(index)
    key = int(hash_images(source, np.array([index]), "content")[0])
    try:
        if pixels.is_rgb:
            values = np.asarray(source.load(index))
            kind = "photographs"
            missing = None
            type_range: tuple[float, float] | None = (0.0, 255.0)
        else:
            stored = _read_stored(source, index, pixels)
            values = stored.values
            kind = stored.describe()
            missing = stored.is_missing
            type_range = _find_type_range(stored)
            _require_channels(stored, pixels)
    except BrokenImage as error:
        return ImageFacts(name, key, problem=str(error).removeprefix(f"{name}: "))
    thumbnail = None
    if with_thumbnail:
        step = max(1, -(-max(values.shape[:2]) // _THUMBNAIL))
        thumbnail = np.nan_to_num(values[::step, ::step].astype(np.float32), posinf=0, neginf=0)
    size = (values.shape[1], values.shape[0])
    moments = measure_channels(values, missing)
    if pixels.range is not None and not pixels.is_rgb:
        # values outside are read as black and white, and the least and the largest are shown as they are
        clipped = measure_channels(values.clip(*pixels.range), missing)
        moments = replace(moments, total=clipped.total, squares=clipped.squares)
    return ImageFacts(name, key, size, kind, type_range, moments, thumbnail)


def guess_format(source: Source, channels: int = 1) -> PixelFormat:
    """Return the channels and the depth that most of some images of ``source`` have, evenly spread over it.

    ``channels`` tells the axes of arrays, if it is known. Images in one or three channels of 8 bits, or with an opacity
    beside them, are photographs.
    """
    found: Counter[tuple[int, int, str]] = Counter()
    for index in np.unique(np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).round().astype(int)).tolist():
        try:
            stored = _read_stored(source, index, PixelFormat(channels))
        except BrokenImage:
            continue
        found[stored.values.shape[2], stored.bits, stored.values.dtype.kind] += 1
    if not found:
        return PixelFormat()
    (most, bits, kind), _ = found.most_common(1)[0]
    if kind == "u" and bits <= 8:
        return PixelFormat() if most <= 4 else PixelFormat(most)
    return PixelFormat(most, 16 if kind in "ui" and bits <= 16 else "float")


def _read_stored(source: Any, index: int, pixels: PixelFormat) -> StoredChannels:
    name = source.name(index)
    # images inside other files are read by their source
    file = BytesIO(source.read_bytes(index)) if hasattr(source, "read_bytes") else name
    return read_stored_channels(file, name, pixels)


def _find_type_range(stored: StoredChannels) -> tuple[float, float] | None:
    """Return the values that are black and white by the type of an image's values, or by what its file says."""
    if stored.range is not None:
        return stored.range
    if stored.values.dtype.kind == "u" and stored.bits <= 16:
        return 0.0, float(2**stored.bits - 1)
    return None


def _require_channels(stored: StoredChannels, pixels: PixelFormat) -> None:
    if stored.values.shape[2] != pixels.count:
        raise BrokenImage(f"has {stored.describe()}, and {pixels.count} are measured (data.channels)")
