"""Images that are very long and thin, whose resized copy would take gigabytes: what is not needed is cut off first.

The pixels of a file of a few hundred bytes may form a line of 30,000 x 2. Enlarged until its short side has 256
pixels, that is an image of a gigapixel, of which a crop then takes the centre.
"""

from __future__ import annotations

__all__ = ["MOST_PIXELS", "find_central_part", "limit_sides"]

MOST_PIXELS = 1 << 22
"""Pixels of a resized image, at most: 16 MiB as Pillow keeps them. It covers 256 x 256 and is 64 times as long."""
_LEAST_RATIO = 16
"""A resized image may be this many times as long as the cover, however large that is: panoramas stay as they are."""


def limit_sides(cover: tuple[int, int]) -> tuple[int, int]:
    """Return the largest height and width that an image may have once it is resized to cover ``cover``."""
    height, width = cover
    least = _LEAST_RATIO * max(cover)
    return max(MOST_PIXELS // width, least), max(MOST_PIXELS // height, least)


def find_central_part(width: int, height: int, cover: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom) of an image that is resized until it covers ``cover``.

    It is the whole image, unless that would be longer than :func:`limit_sides` afterwards: then it is the central
    part of at most that length. Equally much is cut from both ends, so that the centre stays in its place.
    """
    # the limits are those of the resized image, so that they are scaled back to this one
    most_height, most_width = limit_sides(cover)
    cut_across = _count_cut(width, height * most_width // cover[0])
    cut_down = _count_cut(height, width * most_height // cover[1])
    return cut_across, cut_down, width - cut_across, height - cut_down


def _count_cut(length: int, most: int) -> int:
    """Return how many pixels to cut from each end of ``length`` so that about ``most`` remain, one more at the most."""
    return max(0, length - most) // 2
