"""Notes at the beginning of a run on images of more than 8 bits: how they are scaled, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from PIL import Image

from ehm.config.pixel_format import RGB_BYTES
from ehm.data.decoding.decode import decode_image
from ehm.data.decoding.depth import DEPTH, Depth
from ehm.data.sources.base import Source
from ehm.errors import BrokenImage

__all__ = ["describe_depths"]

_LOOKED_AT = 16
"""Images that are decoded to find out what a source holds: a start should not wait for more."""


def describe_depths(source: Source) -> tuple[str, ...]:
    """Return a sentence for each kind of deep values in some images of ``source``, evenly spread; none for 8 bits.

    If images are no photographs, it says which channels they are read as.
    """
    pixels = getattr(source, "pixels", RGB_BYTES)
    if not pixels.is_rgb:
        return (f"images are read as {pixels.describe()} (data.channels, data.depth, data.range)",)
    numbers = np.unique(np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).round().astype(int)).tolist()
    kinds: dict[tuple[str, float, float, bool], list[Depth]] = defaultdict(list)
    for number in numbers:
        try:
            depth = _read_image(source, number).info.get(DEPTH)
        except BrokenImage:
            continue  # the loader counts it
        if depth is not None:
            kinds[depth.kind, depth.black, depth.white, depth.stated].append(depth)
    return tuple(_describe_depths(depths, len(numbers)) for depths in kinds.values())


def _read_image(source: Any, number: int) -> Image.Image:
    item = source.load(number)
    image = getattr(item, "image", item)  # a pair of an image and its mask
    if isinstance(image, Image.Image):
        return image
    # a source of another kind of samples, whose images are read again
    return decode_image(source.name(number), value_range=source.value_range)


def _describe_depths(depths: list[Depth], looked_at: int) -> str:
    first = depths[0]
    why = "as data.range states" if first.stated else "by their type; data.range=[black, white] states others"
    sentence = (
        f"{len(depths)} of {looked_at} images looked at have {first.kind}: {first.black:g} becomes black and "
        f"{first.white:g} white, {why}; the largest value is {max(depth.largest for depth in depths):g}"
    )
    incomplete = [depth.missing for depth in depths if depth.missing]
    if incomplete:
        sentence += (
            f"; {sum(incomplete):,} pixels of {len(incomplete)} images are no numbers, infinite or marked as missing, "
            "and become black"
        )
    return sentence
