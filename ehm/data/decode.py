"""One image file of any common kind to RGB, as a person would expect to see it.

    greyscale, bilevel   the same value in R, G and B
    palette              its colours
    CMYK                 Pillow's formula; a JPEG without Adobe's marker is not inverted, as in browsers
    transparency         composited on white, as viewers and browsers show it
    16 bits, 32 bits     scaled to 8 bits, see `_to_8_bits`
    EXIF orientation     applied
    animation, pages     the first one
    colour profiles      ignored, as in the published recipes

Whatever is wrong with a file becomes one BrokenImage; no warning of Pillow's gets out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, UnidentifiedImageError

from ehm.data.reduced import reduce_while_decoding
from ehm.errors import BrokenImage

__all__ = ["SUFFIXES", "decode", "opened", "upright_size"]

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What makes a file an image, whatever its case."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.32, section 4.6.4: what turns an image of that orientation upright."""


class _Quiet:
    """No warnings of Pillow's, but bombs are errors. Threads are in it together: filters are the whole process's, so
    that ``warnings.catch_warnings`` in each would put back those of another, and leave them behind."""

    def __init__(self) -> None:
        self._lock, self._inside, self._caught = Lock(), 0, warnings.catch_warnings()

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


def decode(
    file: str | Path | BytesIO,
    name: str | None = None,
    formats: tuple[str, ...] | None = None,
    enough: tuple[int, int] | None = None,
) -> Image.Image:
    """Read ``file`` as an RGB image; raises BrokenImage with ``name`` (the path if left out) and the reason.

    ``formats`` are Pillow's names of the formats to try, by default all that it knows. ``enough`` is a size (height,
    width) that the image is resized to next: a much larger JPEG is then read at a reduced size, see `ehm.data.reduced`.

    An image of more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million) is refused as a decompression bomb.
    """
    with opened(file, name, formats, enough=enough) as image:
        if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
            return _to_rgb(_upright(ImageChops.invert(image)))  # Pillow takes every CMYK JPEG for Adobe's
        return _to_rgb(_upright(image))


@contextmanager
def opened(
    file: str | Path | BytesIO,
    name: str | None = None,
    formats: tuple[str, ...] | None = None,
    load: bool = True,
    enough: tuple[int, int] | None = None,
) -> Iterator[Image.Image]:
    """``file`` as Pillow reads it; errors of reading it and of the block are those of `decode`.

    Its pixels are read before the block begins, unless ``load`` is false; ``enough`` is as in `decode`.
    """
    name = name if name is not None else str(file)
    try:
        with _QUIET, Image.open(file, formats=formats) as image:
            if enough is not None:
                reduce_while_decoding(image, enough)
            if load:
                image.load()
            yield image
            return
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        reason = f"a decompression bomb, more than {Image.MAX_IMAGE_PIXELS} pixels"
    except UnidentifiedImageError:
        reason = "not an image of a known format"
    except OSError as error:
        reason = error.strerror or str(error)
    except BrokenImage:
        raise
    except Exception as error:  # a damaged file can raise nearly anything in Pillow's plugins
        reason = f"{type(error).__name__}: {error}"
    raise BrokenImage(f"{name}: {' '.join(reason.split())}")


def upright_size(file: str | Path) -> tuple[int, int]:
    """Width and height that `decode` would give, from the file's head alone; BrokenImage as there."""
    with opened(file, load=False) as image:
        turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged metadata does not make the picture unusable
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image.convert("RGB")


def _to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Deep greyscale values to bytes: linear, black at 0 and white at the full range of the data's bit depth.

    Neither Pillow nor most files say the depth, so white is the smallest of 1 (floating point only), 255, 4095 (the
    12 bits of industrial and medical cameras) and 65535 that no pixel exceeds. Values below 0 or above 65535 have no
    such range: they are stretched from the smallest to the largest.
    """
    values = np.nan_to_num(values.astype(np.float64))
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        values, high = values - low, high - low
        white = high
    else:
        ranges = (1, 255, 4095, 65535) if (values != np.floor(values)).any() else (255, 4095, 65535)
        white = next(white for white in ranges if high <= white)
    scaled: NDArray[np.float64] = np.round(values * (255 / max(white, 1)))
    return scaled.astype(np.uint8)
