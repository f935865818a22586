"""Files beside an ONNX file that hold its weights, which ONNX calls external data; found without the package onnx."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

__all__ = ["find_weight_files"]

_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x7f])")
"""The entry of an ONNX file that names a weight file: a StringStringEntryProto up to the length of its value."""


def find_weight_files(model: Path) -> set[str]:
    """Return the names of the files that an ONNX file takes weights from; a server has no package onnx to ask."""
    names: set[str] = set()
    if model.stat().st_size == 0:  # an empty file cannot be mapped
        return names
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in _LOCATION.finditer(content):
            start = match.end()
            name = content[start : start + _decode_length(match[1])]
            names.add(name.decode(errors="replace"))
    return names


def _decode_length(encoded: bytes) -> int:
    """Decode a protobuf varint: seven bits a byte, the lowest first."""
    length = 0
    for index, byte in enumerate(encoded):
        length += (byte & 127) << 7 * index
    return length
