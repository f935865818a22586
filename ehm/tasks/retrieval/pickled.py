"""Read a pickle of plain values and of NumPy's arrays of numbers without executing anything in it.

The functions of NumPy that pickles call are replaced by functions that make lists of numbers. NumPy's own are not safe
here: ``ndarray((1,), "O", buffer)`` takes eight bytes of the file for the address of an object.
"""

from __future__ import annotations

import pickle
from typing import IO, Any

import numpy as np

__all__ = ["read_pickle"]


def read_pickle(stream: IO[bytes]) -> Any:
    """Read plain values, and arrays of numbers as flat lists; raises UnpicklingError for anything else.

    A damaged file raises other errors too: EOFError, LookupError, TypeError, ValueError, AttributeError, MemoryError.
    """
    return _NumberUnpickler(stream, encoding="latin1").load()


class _NumberUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a function in the pickle; raises UnpicklingError if there is none."""
        # only the package is compared, because numpy.core became numpy._core in NumPy 2
        if module.partition(".")[0] == "numpy" and name in _NUMPY_STAND_INS:
            return _NUMPY_STAND_INS[name]
        if (module, name) in _BYTES_NAMES:
            return _encode_latin1
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only numbers, texts and arrays are read")


class _NumberType:
    """Stands for ``numpy.dtype``: a type of numbers, whose byte order is set afterwards."""

    def __init__(self, kind: Any, *_: Any) -> None:
        self.dtype = np.dtype(kind)
        if self.dtype.kind not in "biuf":  # an array of objects would hold addresses
            raise pickle.UnpicklingError(f"it holds an array of {self.dtype}, not of numbers")

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _NumberList(list[Any]):
    """Stands for ``numpy.ndarray``: a list, whose numbers are set afterwards."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        _version, _shape, kind, _fortran, content = state
        self[:] = _decode_numbers(content, kind)


def _decode_numbers(content: Any, kind: _NumberType, *_: Any) -> list[Any]:
    if isinstance(content, str):  # as pickles of Python 2 hold bytes
        content = _encode_latin1(content)
    numbers: list[Any] = np.frombuffer(content, kind.dtype).tolist()
    return numbers


def _decode_scalar(kind: _NumberType, content: Any) -> Any:
    return _decode_numbers(content, kind)[0]


def _encode_latin1(text: str = "", encoding: str = "latin1") -> bytes:
    """Return the bytes that older pickles write as text; called without arguments for no bytes."""
    return text.encode("latin1")


_BYTES_NAMES = {("_codecs", "encode"), ("__builtin__", "bytes"), ("builtins", "bytes")}
"""Functions that pickles call to make bytes."""
_NUMPY_STAND_INS: dict[str, Any] = {
    "_reconstruct": _NumberList,
    "_frombuffer": _decode_numbers,
    "scalar": _decode_scalar,
    "ndarray": None,  # an argument of _reconstruct, which ignores it
    "dtype": _NumberType,
}
"""Replacements of the functions of NumPy that pickles call; at the end of the file, after their definitions."""
