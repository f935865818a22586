"""TIFF files of more than 8 bits a value, which Pillow reads in part only: their values as they are stored.

What the bytes mean is worked out after TIFF 6.0 and Adobe's technical note 3 on predictors: byte order, bits of a
value, values of a pixel one after the other or in planes, differences between neighbours.

Shapes: an image of H x W pixels with S values each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ehm.data.decoding.orientation import ORIENTATION_TAG
from ehm.data.decoding.tiff_segments import BYTE_CODECS, Segments, read_integers, read_segments
from ehm.data.decoding.tiff_tags import Tag

__all__ = ["BLACK_IS_ZERO", "CMYK", "PALETTE", "RGB", "WHITE_IS_ZERO", "Tiff", "is_tiff", "read_pages", "read_tiff"]

# TIFF's photometric interpretations
WHITE_IS_ZERO = 0
BLACK_IS_ZERO = 1
RGB = 2
PALETTE = 3
CMYK = 5
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0")
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
"""NumPy's letters of the sample formats; 4 is "undefined"."""
# TIFF's numbers of predictors
_DIFFERENCES = 2
_FLOAT_DIFFERENCES = 3
_MAX_SAMPLES = 8
"""Values of a pixel of a photograph, at most: those of CMYK, opacity, and some that are left out."""
_MAX_PAGES = 256
"""Directories that are read, at most: those of a damaged file may form a circle."""
_NOT_AN_IMAGE = 1 | 4
"""Bits of TIFF's subfile type: a reduced version of another page, or the mask of its transparency."""


@dataclass(frozen=True)
class Tiff:
    """The facts of the first directory of a TIFF file.

    ``size`` is that of the stored pixels (width, height). A pixel has ``samples`` values of ``bits`` bits; ``dtype`` is
    that of the values as they are read. ``photometric`` and ``extra`` (of each sample beyond the colours: 0 unknown,
    1 premultiplied alpha, 2 alpha) are TIFF's numbers. ``missing_value`` stands for missing data, if there is one.
    """

    size: tuple[int, int]
    samples: int
    bits: int
    dtype: np.dtype[Any]
    photometric: int
    extra: tuple[int, ...]
    orientation: int
    missing_value: float | None
    tags: ImageFileDirectory_v2

    @property
    def is_deep(self) -> bool:
        """True if Pillow does not read the values as the file means them, or knows nothing of missing ones."""
        if self.missing_value is not None and self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
            return self.tags.get(Tag.COMPRESSION, 1) in BYTE_CODECS
        return self.bits > 8 or self.dtype.kind != "u"

    def read_rows(self, file: IO[bytes]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the number of a first row and the values (h, W, S) of some rows, from the top to the bottom.

        Raises OSError, as Pillow does, if the file is damaged or packed in a way that only suits 8 bits.
        """
        in_planes = self.tags.get(Tag.PLANES, 1) == 2 and self.samples > 1
        planes = self.samples if in_planes else 1
        segments = read_segments(self.tags, self.size, planes, self.bits * (self.samples // planes), file)
        for first, count in segments.iterate_row_groups():
            loaded = [segments.load_rows(file, plane, first, count) for plane in range(planes)]
            # a single strip may be the whole image: what is made of its bytes takes several times their memory
            for start in range(0, len(loaded[0]), segments.rows_at_once):
                row = first * segments.height + start
                if row >= self.size[1]:  # tiles reach beyond the image
                    break
                piece = slice(start, start + segments.rows_at_once)
                parts = [self._decode_values(rows[piece], segments) for rows in loaded]
                yield row, np.concatenate(parts, axis=2)[: self.size[1] - row, : self.size[0]]

    def _decode_values(self, rows: NDArray[np.uint8], segments: Segments) -> NDArray[Any]:
        """Decode bytes (h, across, bytes of a segment's row) to values (h, w, S); w may go beyond the image."""
        samples = segments.bits // self.bits
        predictor = self.tags.get(Tag.PREDICTOR, 1)
        if predictor == _FLOAT_DIFFERENCES:
            rows = _undo_float_differences(rows, samples, self.bits // 8)
            values = rows.view(self.dtype.newbyteorder(">"))
        # values that do not end with a byte
        elif self.bits % 8:
            values = _unpack_bits(rows, segments.width * samples, self.bits)
        else:
            byte_order: Literal["<", ">"] = ">" if self.tags.prefix == b"MM" else "<"
            values = rows.view(self.dtype.newbyteorder(byte_order))
        values = values.astype(self.dtype).reshape(*rows.shape[:2], segments.width, samples)
        if predictor == _DIFFERENCES:
            words = values.view(f"u{self.dtype.itemsize}")  # unsigned, to wrap around as the differences do
            values = np.cumsum(words, axis=2, dtype=words.dtype).view(self.dtype)
        return values.reshape(len(rows), -1, samples)


def is_tiff(file: IO[bytes]) -> bool:
    """Return whether a file begins as TIFF files do; it is left at its beginning."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    return magic in _MAGIC


def read_tiff(file: IO[bytes]) -> Tiff | None:
    """Read the first directory of a TIFF file; None if its values are not all of one kind that NumPy has."""
    return _describe_page(next(_read_directories(file)), _MAX_SAMPLES)


def read_pages(file: IO[bytes], most_samples: int) -> list[Tiff]:
    """Read the directories of all pages of a TIFF file but reduced versions and masks of transparency.

    Raises OSError if the values of a page are not all of one kind that NumPy has, or more than ``most_samples``.
    """
    pages = []
    for number, tags in enumerate(_read_directories(file), start=1):
        if read_integers(tags, Tag.SUBFILE, (0,))[0] & _NOT_AN_IMAGE:
            continue
        page = _describe_page(tags, most_samples)
        if page is None:
            raise OSError(f"page {number} has values of several kinds, or more than {most_samples} values a pixel")
        pages.append(page)
    return pages


def _read_directories(file: IO[bytes]) -> Iterator[ImageFileDirectory_v2]:
    """Yield the directory of each page of a TIFF file, up to `_MAX_PAGES`."""
    file.seek(0)
    header = file.read(8)
    if header[2:3] == b"+":  # BigTIFF
        header += file.read(8)
    tags = ImageFileDirectory_v2(header)
    for _ in range(_MAX_PAGES):
        offset = tags.next
        tags = ImageFileDirectory_v2(header)
        file.seek(offset)
        tags.load(file)
        yield tags
        if not tags.next:
            return


def _describe_page(tags: ImageFileDirectory_v2, most_samples: int) -> Tiff | None:
    """Return the facts of a directory; None if its values are not all of one kind that NumPy has."""
    width = read_integers(tags, Tag.WIDTH, (1,))[0]
    height = read_integers(tags, Tag.HEIGHT, (1,))[0]
    samples = read_integers(tags, Tag.SAMPLES, (1,))[0]
    all_bits = set(read_integers(tags, Tag.BITS, (1,)))
    formats = set(read_integers(tags, Tag.SAMPLE_FORMAT, (1,)))
    if len(all_bits) != 1 or len(formats) != 1 or min(width, height) < 1 or not 1 <= samples <= most_samples:
        return None
    bits = all_bits.pop()
    dtype = _choose_dtype(bits, _KINDS.get(formats.pop(), ""))
    if dtype is None:
        return None
    (orientation,) = read_integers(tags, ORIENTATION_TAG, (1,))[:1]
    return Tiff(
        size=(width, height),
        samples=samples,
        bits=bits,
        dtype=dtype,
        photometric=read_integers(tags, Tag.PHOTOMETRIC, (WHITE_IS_ZERO,))[0],
        extra=read_integers(tags, Tag.EXTRA_SAMPLES, ()),
        orientation=orientation if orientation in range(1, 9) else 1,
        missing_value=_read_missing_value(tags),
        tags=tags,
    )


def _choose_dtype(bits: int, kind: str) -> np.dtype[Any] | None:
    """Return the smallest type of NumPy's that holds values of ``bits`` bits; None if there is none."""
    if kind not in ("u", "i", "f") or not 1 <= bits <= 64:
        return None
    size = 2 ** max(0, math.ceil(math.log2(bits / 8)))
    # signs and exponents stand at the top of whole bytes alone
    if (kind != "u" and 8 * size != bits) or (kind == "f" and size == 1):
        return None
    return np.dtype(f"{kind}{size}")


def _read_missing_value(tags: ImageFileDirectory_v2) -> float | None:
    """Return the number in GDAL's tag for missing data; None if there is none."""
    try:
        value = float(str(tags.get(Tag.GDAL_NODATA, "")).strip("\0 "))
    except ValueError:
        return None
    # values that are no numbers, or infinite, count as missing anyway
    return value if math.isfinite(value) else None


def _unpack_bits(rows: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint64]:
    """Return the first ``count`` values of ``bits`` bits in each row (h, across, bytes), the highest bit first."""
    digits = np.unpackbits(rows, axis=2)[:, :, : count * bits].reshape(*rows.shape[:2], count, bits)
    values = np.zeros(digits.shape[:3], np.uint64)
    for place in range(bits):
        values = values * 2 + digits[..., place]
    return values


def _undo_float_differences(rows: NDArray[np.uint8], samples: int, size: int) -> NDArray[np.uint8]:
    """Return rows (h, across, bytes) of floating-point values, highest byte first, from those of predictor 3.

    Adobe's technical note 3: a row's highest bytes come first, then the second ones, and so on; and each byte is the
    difference to that of the pixel before.
    """
    height, across, length = rows.shape
    by_pixel = rows.reshape(height, across, length // samples, samples)
    summed = np.cumsum(by_pixel, axis=2, dtype=np.uint8).reshape(height, across, size, length // size)
    return np.ascontiguousarray(summed.swapaxes(2, 3)).reshape(rows.shape)
