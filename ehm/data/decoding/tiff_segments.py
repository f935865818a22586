"""The strips or tiles of a TIFF file, decompressed to bytes.

libtiff, through Pillow, does nothing but decompress: for it some segments are wrapped up as a small TIFF file of bytes,
without anything that would say what they mean. So a file of any depth is read in parts of bounded size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from ehm.data.decoding.tiff_tags import Tag

__all__ = ["BYTE_CODECS", "Segments", "read_integers", "read_segments"]

_RAW = 1
BYTE_CODECS = frozenset({_RAW, 5, 8, 32773, 32946, 34925, 50000})
"""Compressions that keep bytes as they are: none, LZW, deflate (two numbers), PackBits, LZMA and Zstandard."""
_LONG = 4
"""TIFF's number of the type of all values that are written here: unsigned, of four bytes."""
_BYTES_AT_ONCE = 1 << 24
"""Bytes that are decompressed and decoded at once, about: a large image of many bits, whole, would take gigabytes."""


@dataclass(frozen=True)
class Segments:
    """The segments of an image that is ``image_height`` pixels high: in each plane ``across`` x ``down`` of them.

    They have ``width`` x ``height`` pixels of ``bits`` bits. Strips are segments as wide as the image, of which the
    last one may be lower. ``offsets`` and ``counts`` say where each lies in the file, and how many bytes it has there.
    """

    tiled: bool
    width: int
    height: int
    across: int
    down: int
    image_height: int
    bits: int
    compression: int
    fill_order: int
    offsets: Sequence[int]
    counts: Sequence[int]

    @property
    def row_bytes(self) -> int:
        """Bytes of a segment's row."""
        return -(-self.width * self.bits // 8)  # rounded up

    @property
    def rows_at_once(self) -> int:
        """Rows of the image to decode at once."""
        return max(1, _BYTES_AT_ONCE // (self.across * self.row_bytes))

    def iterate_row_groups(self) -> Iterator[tuple[int, int]]:
        """Yield rows of segments to read at once: the number of the first row, and the number of rows."""
        count = max(1, self.rows_at_once // self.height)
        for first in range(0, self.down, count):
            yield first, min(count, self.down - first)

    def load_rows(self, file: IO[bytes], plane: int, first: int, count: int) -> NDArray[np.uint8]:
        """Decompress ``count`` rows of segments of a plane to bytes (h, across, bytes of a segment's row)."""
        begin = (plane * self.down + first) * self.across
        height = count * self.height
        if not self.tiled:
            height = min(height, self.image_height - first * self.height)
        parts = []
        for number in range(begin, begin + count * self.across):
            file.seek(self.offsets[number])
            parts.append(file.read(self.counts[number]))
        with TiffImageFile(BytesIO(self._wrap_up(parts, height))) as image:
            image.load()
            return np.asarray(image).reshape(height, self.across, self.row_bytes)

    def _wrap_up(self, parts: Sequence[bytes], height: int) -> bytes:
        """Return a TIFF file of ``height`` rows of bytes that consists of the segments ``parts``, as they are."""
        lengths = list(map(len, parts))
        directory = {
            Tag.WIDTH: [self.across * self.row_bytes],
            Tag.HEIGHT: [height],
            Tag.BITS: [8],
            Tag.COMPRESSION: [self.compression],
            Tag.PHOTOMETRIC: [1],
            Tag.FILL_ORDER: [self.fill_order],
            Tag.SAMPLES: [1],
        }
        if self.tiled:
            directory |= {Tag.TILE_WIDTH: [self.row_bytes], Tag.TILE_HEIGHT: [self.height]}
            offsets_tag = Tag.TILE_OFFSETS
            counts_tag = Tag.TILE_BYTES
        else:
            directory |= {Tag.ROWS_PER_STRIP: [self.height]}
            offsets_tag = Tag.STRIP_OFFSETS
            counts_tag = Tag.STRIP_BYTES
        # a header of 8 bytes, the directory of 12 bytes an entry, the two lists if they are lists, the segments
        lists_at = 8 + 2 + 12 * (len(directory) + 2) + 4
        first_offset = lists_at
        if len(parts) > 1:
            first_offset += 2 * 4 * len(parts)
        directory |= {offsets_tag: list(accumulate(lengths[:-1], initial=first_offset)), counts_tag: lengths}
        entries = b""
        lists = b""
        for tag, values in sorted(directory.items()):
            packed = struct.pack(f"<{len(values)}I", *values)
            # an entry holds a single value itself, and the place of a list
            if len(values) > 1:
                place = struct.pack("<I", lists_at + len(lists))
                lists += packed
            else:
                place = packed
            entries += struct.pack("<HHI", tag, _LONG, len(values)) + place
        header = b"II*\0" + struct.pack("<IH", 8, len(directory))
        return b"".join([header, entries, struct.pack("<I", 0), lists, *parts])


def read_segments(
    tags: ImageFileDirectory_v2, size: tuple[int, int], planes: int, bits: int, file: IO[bytes]
) -> Segments:
    """Find the segments of an image of ``size`` (width, height); a pixel has ``bits`` bits in each of the ``planes``.

    Raises OSError if tags are missing, contradict each other or the file's size, or name another compression.
    """
    compression = read_integers(tags, Tag.COMPRESSION, (_RAW,))[0]
    if compression not in BYTE_CODECS:
        raise OSError(f"TIFF's compression {compression} is not read for values of more than 8 bits")
    tiled = Tag.TILE_OFFSETS in tags
    if tiled:
        width = read_integers(tags, Tag.TILE_WIDTH, (0,))[0]
        height = read_integers(tags, Tag.TILE_HEIGHT, (0,))[0]
    else:
        width = size[0]
        height = min(size[1], read_integers(tags, Tag.ROWS_PER_STRIP, (size[1],))[0])
    if not (0 < width < 2 * size[0] + 4096 and 0 < height < 2 * size[1] + 4096):
        raise OSError(f"tiles or strips of {width} x {height} pixels make no sense")
    across = -(-size[0] // width)  # both rounded up
    down = -(-size[1] // height)
    if tiled:
        offsets = read_integers(tags, Tag.TILE_OFFSETS, ())
        counts = read_integers(tags, Tag.TILE_BYTES, ())
    else:
        offsets = read_integers(tags, Tag.STRIP_OFFSETS, ())
        counts = read_integers(tags, Tag.STRIP_BYTES, ())
    if compression == _RAW and not tiled:
        row = -(-width * bits // 8)
        height, offsets, counts = _divide_strips(offsets, size[1], height, row)
        down = -(-size[1] // height)
    if not len(offsets) == len(counts) == across * down * planes:
        raise OSError(f"{len(offsets)} strips or tiles are listed, {across * down * planes} are needed")
    # a forged file could name the same bytes a thousand times, and take all memory
    if sum(counts) > file.seek(0, 2):
        raise OSError("the file is truncated, or its strips overlap")
    fill_order = read_integers(tags, Tag.FILL_ORDER, (1,))[0]
    return Segments(tiled, width, height, across, down, size[1], bits, compression, fill_order, offsets, counts)


def read_integers(tags: ImageFileDirectory_v2, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers under ``tag``, 0 at least, however many they are; OSError if there is something else."""
    value = tags.get(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    if (not values and default) or not all(isinstance(each, int) for each in values):
        raise OSError(f"TIFF's tag {tag} holds no numbers")
    # a number of -1 bytes would be all that is left of the file, again for every strip
    if min(values, default=0) < 0:
        raise OSError(f"TIFF's tag {tag} holds a negative number")
    return values


def _divide_strips(
    offsets: Sequence[int], image_height: int, height: int, row: int
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Divide uncompressed strips of ``height`` rows of ``row`` bytes, so that a high one need not be read at once.

    Returns the new height, which divides the old one, and the offset and the number of bytes of each strip: writers of
    uncompressed files were seen to leave the numbers out.
    """
    lower = height
    while lower * row > _BYTES_AT_ONCE and lower > 1:
        # the next smaller divisor from a half down
        lower = next(rows for rows in range(lower // 2, 0, -1) if height % rows == 0)
    strips_of_plane = -(-image_height // height)
    starts = []
    counts = []
    for number, offset in enumerate(offsets):
        rows_left = min(height, image_height - number % strips_of_plane * height)
        for first in range(0, rows_left, lower):
            starts.append(offset + first * row)
            counts.append(row * min(lower, rows_left - first))
    return lower, tuple(starts), tuple(counts)
