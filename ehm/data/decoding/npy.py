"""NumPy's ``.npy`` files as images: the array alone, never a pickled object."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ehm.data.decoding.limits import refuse_bomb
from ehm.errors import BrokenImage

__all__ = ["is_npy", "read_npy", "read_npy_size"]

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
"""The readers of headers by the version of the format; 3.0 is for names of fields, which images do not have."""


def is_npy(file: IO[bytes]) -> bool:
    """Return whether a file begins as ``.npy`` files do; it is left at its beginning."""
    file.seek(0)
    magic = file.read(len(npy.MAGIC_PREFIX))
    file.seek(0)
    return magic == npy.MAGIC_PREFIX


def read_npy_size(file: IO[bytes], name: str) -> tuple[int, int]:
    """Return the largest width and height that the array of a file may have as an image, from its header."""
    shape, _ = _read_header(file, name)
    sides = sorted(shape)[-2:]
    return sides[0], sides[1]


def read_npy(file: IO[bytes], name: str, channels: int) -> NDArray[Any]:
    """Return the array of a file as (H, W, C).

    It may be (H, W), (H, W, C) or (C, H, W); of the last two the one is taken that has as many ``channels``, (H, W, C)
    if both have. Raises BrokenImage, which begins with ``name``, for other shapes and types.
    """
    shape, _ = _read_header(file, name)
    channels_first = len(shape) == 3 and shape[2] != channels and shape[0] == channels
    height, width = shape[1:] if channels_first else shape[:2]
    refuse_bomb(width, height)
    file.seek(0)
    values = np.load(file, allow_pickle=False)
    if len(shape) == 2:
        return values[:, :, None]
    return values.transpose(1, 2, 0) if channels_first else values


def _read_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type of a file's array; raises BrokenImage if they are not those of an image."""
    file.seek(0)
    read_header = _HEADERS.get(npy.read_magic(file))
    if read_header is None:
        raise BrokenImage(f"{name}: is of a version of NumPy's format that is not read; save it again by numpy.save")
    shape, _, dtype = read_header(file)
    if dtype.hasobject or dtype.kind not in "uif":
        raise BrokenImage(f"{name}: holds values of type {dtype}; integers and floating-point values are read")
    if len(shape) not in (2, 3) or 0 in shape:
        raise BrokenImage(f"{name}: has the shape {shape}; an image has (H, W), (H, W, C) or (C, H, W)")
    return shape, dtype
