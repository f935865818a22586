"""One image file of any common kind to RGB, as a person would expect to see it.

    greyscale, bilevel   the same value in R, G and B
    palette              its colours
    CMYK                 Pillow's formula; JPEGs are inverted, with Adobe's marker or without it, as in browsers
    CIELab               the sRGB of its colours
    transparency         composited on white, as viewers and browsers show it
    16 bits, 32 bits     scaled to 8 bits by their type or by a stated range, see `ehm.data.decoding.depth`
    EXIF orientation     applied
    animation, pages     the first one
    colour profiles      ignored, as in the published recipes

Whatever is wrong with a file becomes one BrokenImage; no warning of Pillow's gets out.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import IO

from PIL import Image, UnidentifiedImageError

from ehm.data.decoding.deep import read_deep_pixels, read_deep_tiff
from ehm.data.decoding.depth import DEPTH, ValueRange
from ehm.data.decoding.orientation import Head, read_orientation, turn_image
from ehm.data.decoding.png import is_png, leave_out_pixels
from ehm.data.decoding.reduced import reduce_while_decoding
from ehm.data.decoding.tiff import is_tiff, read_tiff
from ehm.errors import BrokenImage, DataError

__all__ = ["SUFFIXES", "decode_image", "name_errors", "open_binary", "open_image", "read_head"]

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Suffixes of image files, in any case."""


class _Quiet:
    """A context without Pillow's warnings, in which decompression bombs are errors; threads share it.

    Filters of warnings belong to the whole process: if each thread had a ``warnings.catch_warnings`` of its own, one
    would put back the filters of another, and leave them behind.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


_QUIET = _Quiet()


def decode_image(
    file: str | Path | BytesIO,
    name: str | None = None,
    formats: tuple[str, ...] | None = None,
    enough: tuple[int, int] | None = None,
    value_range: ValueRange = None,
) -> Image.Image:
    """Read ``file`` as an RGB image; raises BrokenImage with ``name`` (the path if left out) and the reason.

    ``formats`` are Pillow's names of the formats to try, by default all that it knows. ``value_range`` are the values
    that are black and white in images of more than 8 bits; how such an image was scaled is in its ``info``. ``enough``
    is a size (height, width) that `EvalTransform` resizes the image to next: a much larger JPEG is then read at a
    reduced size, see `ehm.data.decoding.reduced`, and a greyscale image is left in Pillow's mode ``L``.

    An image of more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million) is refused as a decompression bomb.
    """
    if name is None:
        name = str(file)
    with name_errors(name), open_binary(file) as stream:
        # Pillow gives the high byte of colours of 16 bits, and knows nothing of missing values
        if (formats is None or "TIFF" in formats) and is_tiff(stream):
            tiff = read_tiff(stream)
            if tiff is not None and tiff.is_deep:
                image, depth = read_deep_tiff(tiff, stream, name, value_range)
                return _note_depth(turn_image(_convert_to_rgb(image), tiff.orientation), depth)
        stream.seek(0)
        with Image.open(stream, formats=formats) as image:
            deep = read_deep_pixels(image, stream, name, value_range)
            if deep is not None:
                turned = turn_image(_convert_to_rgb(deep[0]), read_orientation(image))
                return _note_depth(turned, deep[1])
            if enough is not None:
                reduce_while_decoding(image, enough)
            image.load()
            # nothing is left to turn of a TIFF, which Pillow turns while it loads
            return turn_image(_convert_to_rgb(image, keep_grey=enough is not None), read_orientation(image))


@contextmanager
def open_image(file: str | Path | BytesIO, name: str | None = None) -> Iterator[Image.Image]:
    """Open ``file`` as Pillow reads it, without its pixels; errors, also the block's, are as in `decode_image`."""
    with (
        name_errors(name if name is not None else str(file)),
        open_binary(file) as stream,
        Image.open(stream) as image,
    ):
        yield image


def read_head(file: str | Path | BytesIO, name: str | None = None, formats: tuple[str, ...] | None = None) -> Head:
    """Return the size and the orientation of an image without decoding a pixel; errors are as in `decode_image`."""
    with name_errors(name if name is not None else str(file)), open_binary(file) as stream:
        if (formats is None or "TIFF" in formats) and is_tiff(stream):
            # Pillow's versions differ in whether they give the stored size, or the size as it is seen
            tiff = read_tiff(stream)
            if tiff is not None:
                return Head(tiff.size, tiff.orientation)
        head: IO[bytes] = stream
        if is_png(stream):
            head = leave_out_pixels(stream)
        with Image.open(head, formats=formats) as image:
            return Head(image.size, read_orientation(image))


@contextmanager
def open_binary(file: str | Path | BytesIO) -> Iterator[IO[bytes]]:
    """Open ``file`` at its beginning.

    Pillow is given an open file rather than a path, because it maps greyscale TIFFs of a path into memory, and then
    takes the size of one that is turned for that of its stored rows (Pillow 13.0).
    """
    if isinstance(file, BytesIO):
        yield file
        return
    # a pipe would be waited for until somebody writes into it
    if stat.S_ISFIFO(os.stat(file).st_mode):
        raise OSError("a named pipe, and no file")
    with open(file, "rb") as stream:
        yield stream


@contextmanager
def name_errors(name: str) -> Iterator[None]:
    """Turn whatever is wrong with a file into a BrokenImage that begins with ``name``."""
    try:
        with _QUIET:
            yield
        return
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        reason = f"a decompression bomb, more than {Image.MAX_IMAGE_PIXELS} pixels"
    except UnidentifiedImageError:
        reason = "not an image of a known format"
    except OSError as error:
        reason = error.strerror or str(error)
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything in Pillow's plugins
        reason = f"{type(error).__name__}: {error}"
    raise BrokenImage(f"{name}: {' '.join(reason.split())}")


def _convert_to_rgb(image: Image.Image, keep_grey: bool = False) -> Image.Image:
    """Return the image in RGB, or in mode ``L`` if that is all it has and ``keep_grey`` is set."""
    if image.mode == "LAB":
        return _convert_lab(image)
    if image.mode in ("La", "RGBa"):  # premultiplied by alpha, which Pillow converts to no other mode
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    if keep_grey and image.mode == "L":
        return image.copy()  # without the open file
    return image.convert("RGB")


def _convert_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms  # a library of its own, which few images need

    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only a conversion in place gives nothing
    return converted


def _note_depth(image: Image.Image, depth: object) -> Image.Image:
    image.info[DEPTH] = depth
    return image
