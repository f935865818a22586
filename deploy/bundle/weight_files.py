"""Files beside an ONNX file that hold its weights, which ONNX calls external data; found without the package onnx."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

__all__ = ["find_weight_files"]

_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x7f])")
"""In an ONNX file, where the weights of a tensor lie: a StringStringEntryProto up to the length of its value."""


def find_weight_files(model: Path) -> set[str]:
    """Return the names of the files that an ONNX file takes weights from; a server has no package onnx to ask."""
    if model.stat().st_size == 0:  # which cannot be mapped
        return set()
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = set()
        for match in _LOCATION.finditer(content):
            length = sum((byte & 127) << 7 * place for place, byte in enumerate(match[1]))
            found.add(content[match.end() : match.end() + length].decode(errors="replace"))
    return found
