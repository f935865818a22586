"""The facts of one image of a source: its size, its channels, their moments, and a key of its bytes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.analysis.data_stats.channel_moments import ChannelMoments, measure_channels
from ehm.config.pixel_format import PixelFormat
from ehm.data import Source
from ehm.data.decoding.channels import read_stored_channels
from ehm.data.decoding.stored_channels import StoredChannels
from ehm.data.sources.identity import hash_images
from ehm.errors import BrokenImage

__all__ = ["ImageFacts", "examine_image", "guess_format"]

_SAMPLES = 16
"""Images that decide the format of a source, at most."""
_THUMBNAIL_SIDE = 160
"""The longer side of a thumbnail in pixels, at most."""


@dataclass(frozen=True)
class ImageFacts:
    """The facts of an image; if it cannot be read, ``problem`` says why and the rest is empty.

    ``size`` is (width, height). ``kind`` describes the channels and the type of their values in words. ``type_range``
    is the range from black to white by that type, None if the type does not tell. ``thumbnail`` (h, w, C) is None
    unless it was asked for.
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
    """Return the facts of image ``index`` of ``source``, for a model that takes images in the format ``pixels``.

    The moments of photographs are computed from bytes, those of other images from the stored values.
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
        step = max(1, math.ceil(max(values.shape[:2]) / _THUMBNAIL_SIDE))
        thumbnail = np.nan_to_num(values[::step, ::step].astype(np.float32), posinf=0, neginf=0)
    size = (values.shape[1], values.shape[0])
    moments = measure_channels(values, missing)
    if pixels.range is not None and not pixels.is_rgb:
        # mean and deviation are those of the values that a model gets, clipped to the range; the least and the largest
        # value stay those of the file
        clipped = measure_channels(values.clip(*pixels.range), missing)
        moments = replace(moments, total=clipped.total, squares=clipped.squares)
    return ImageFacts(name, key, size, kind, type_range, moments, thumbnail)


def guess_format(source: Source, channels: int = 1) -> PixelFormat:
    """Return the channels and the depth of most images of ``source``, by a sample that is spread evenly over it.

    ``channels`` is needed to find the axis of channels in arrays. Images of 8 bits with up to four channels (grey or
    RGB, with or without opacity) are photographs.
    """
    found: Counter[tuple[int, int, str]] = Counter()
    sample = np.linspace(0, len(source) - 1, min(_SAMPLES, len(source))).round().astype(int)
    for index in np.unique(sample).tolist():
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
