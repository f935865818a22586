"""A pickle of plain values and of NumPy's arrays of numbers, read so that nothing in it is executed.

What NumPy's pickles call is replaced by functions that make lists of numbers. NumPy's own are not safe here:
``ndarray((1,), "O", buffer)`` takes eight bytes of the file for the address of an object.
"""

from __future__ import annotations

import pickle
from typing import IO, Any

import numpy as np

__all__ = ["read_pickle"]


def read_pickle(stream: IO[bytes]) -> Any:
    """What ``stream`` holds: plain values, arrays of numbers as flat lists; UnpicklingError for anything else.

    A damaged file raises other errors too: EOFError, LookupError, TypeError, ValueError, AttributeError, MemoryError.
    """
    return _Numbers(stream, encoding="latin1").load()


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the pickle."""
        if module.partition(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) in _BYTES:
            return _encode
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only numbers, texts and arrays are read")


class _Kind:
    """A type of numbers, whose byte order comes second."""

    def __init__(self, kind: Any, *_: Any) -> None:
        self.dtype = np.dtype(kind)
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"it holds an array of {self.dtype}, not of numbers")

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(list[Any]):
    """An array, whose numbers come second."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        _version, _shape, kind, _fortran, content = state
        self[:] = _values(content, kind)


def _values(content: Any, kind: _Kind, *_: Any) -> list[Any]:
    values: list[Any] = np.frombuffer(_encode(content) if isinstance(content, str) else content, kind.dtype).tolist()
    return values


def _encode(text: str = "", encoding: str = "latin1") -> bytes:
    """How older pickles write bytes: encoded, or none at all."""
    return text.encode("latin1")


_BYTES = {("_codecs", "encode"), ("__builtin__", "bytes"), ("builtins", "bytes")}
_NUMPY: dict[str, Any] = {
    "_reconstruct": _Array,
    "_frombuffer": _values,
    "scalar": lambda kind, content: _values(content, kind)[0],
    "ndarray": None,  # an argument of the first
    "dtype": _Kind,
}
