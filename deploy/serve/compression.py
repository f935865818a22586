"""HTTP's content codings gzip and deflate, with a limit on what a small body may unpack to."""

from __future__ import annotations

import gzip
import zlib

from ehm.errors import RequestError

__all__ = ["pack", "unpack"]

_WINDOW = {
    "gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
}  # HTTP's deflate is zlib's format (RFC 9110, 8.4.1.2)


def unpack(body: bytes, coding: str, limit: int) -> bytes:
    """Undo the Content-Encoding ``coding``; RequestError: 415 unknown, 400 damaged, 413 over ``limit`` bytes."""
    if coding in ("", "identity"):
        return body
    if coding not in _WINDOW:
        raise RequestError(415, "Content-Encoding: expected gzip or deflate")
    stream = zlib.decompressobj(_WINDOW[coding])
    try:
        unpacked = stream.decompress(body, limit + 1)
    except zlib.error:
        raise RequestError(400, f"the body is not {coding}") from None
    if len(unpacked) > limit:
        raise RequestError(413, f"the body unpacks to more than {limit} bytes")
    if not stream.eof or stream.unused_data:
        raise RequestError(400, f"the body is not one whole {coding} stream")
    return unpacked


def pack(body: bytes, accepted: str) -> tuple[bytes, str | None]:
    """The body in the first coding of an Accept-Encoding header that is known, and its name; None where none is."""
    for entry in accepted.lower().split(","):
        coding, _, quality = entry.replace(" ", "").partition(";")
        if coding in _WINDOW and quality not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            packed = gzip.compress(body, 1, mtime=0) if coding == "gzip" else zlib.compress(body, 1)
            return packed, coding
    return body, None
