"""The metadata of a PNG file without its pixels.

A PNG file is a signature and a sequence of chunks: length (4 bytes, big-endian), type (4 bytes), data, checksum (4
bytes); see sections 5.2 to 5.4 of the PNG specification, https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import struct
from io import SEEK_CUR, BytesIO
from typing import IO

__all__ = ["is_png", "leave_out_pixels"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IDAT", b"fdAT")
"""The types of chunks with compressed pixels, of the image and of the later frames of an animation."""
_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_HEAD_BYTES = 8
"""Bytes of a chunk before its data: length and type."""
_CHECKSUM_BYTES = 4


def is_png(stream: IO[bytes]) -> bool:
    """Return whether a file begins as PNG files do; the stream is left at its beginning."""
    stream.seek(0)
    signature = stream.read(len(_SIGNATURE))
    stream.seek(0)
    return signature == _SIGNATURE


def leave_out_pixels(stream: IO[bytes]) -> BytesIO:
    """Copy a PNG file without the chunks that hold its pixels.

    Orientation may stand behind the pixels, and Pillow decodes them all to get there; in the copy, it comes at once. A
    truncated file becomes a complete copy.
    """
    copy = BytesIO()
    copy.write(stream.read(len(_SIGNATURE)))
    while len(head := stream.read(_HEAD_BYTES)) == _HEAD_BYTES:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            break
        if kind in _PIXELS:
            stream.seek(length + _CHECKSUM_BYTES, SEEK_CUR)
        else:
            copy.write(head)
            copy.write(stream.read(length + _CHECKSUM_BYTES))
    copy.write(_END)
    copy.seek(0)
    return copy
