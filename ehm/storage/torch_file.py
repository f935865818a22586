"""Files that ``torch.save`` wrote, read without torch: arrays of NumPy in the containers that held tensors.

Such a file is a pickle with the numbers beside it: since torch 1.6 in an archive (zip), before that one after the
other. Nothing in it is executed. Of all names in the pickle only those of plain containers and of tensors are admitted,
and each stands for a function or a class of this file, not for the one that it names.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ehm.errors import CheckpointError
from ehm.storage.arrays import Arrays
from ehm.storage.reading import shorten

__all__ = ["TORCHSCRIPT", "StandIn", "explain_refusal", "flatten_tensors", "read_torch_file"]

TORCHSCRIPT = (
    "it holds a TorchScript program, as OpenAI's files of CLIP do, and reading it would run code; give the folder of "
    "the same weights from the Hugging Face Hub"
)
"""Reason for which such a program is refused."""
_TENSORS = "a file of tensors that can be read safely"
_DAMAGED = "it is damaged, or no file of torch's"
_TRAINING_STATE = ("optimizer", "opt", "scaler", "lr_scheduler", "scheduler")
"""Keys under which training programs keep tensors that are no network's."""
_DEEPEST = 8
"""Most sections within each other that are read; a program's network lies in the third at most."""
_ByteOrder = Literal["<", ">"]
_ZIP_START = b"PK\x03\x04"
_OLD_START = 0x1950A86A20F9469CFC6C
"""Number that files older than the archives begin with (``MAGIC_NUMBER`` of ``torch/serialization.py``)."""
_NUMBER_TYPES = {
    **{"DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16},
    **{"LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8},
    **{"ByteStorage": np.uint8, "BoolStorage": np.bool_, "BFloat16Storage": np.uint16},
}
"""NumPy's types by the names of torch's storages. NumPy has no bfloat16, which is the upper half of a float32."""


class StandIn:
    """Base of the classes that stand for those in a file; an instance holds the attributes of an object, and no code.

    ``_parameters`` and ``_modules`` are those of a module.
    """

    _parameters: Mapping[str, Any] = {}
    _modules: Mapping[str, Any] = {}


class _NumberType(NamedTuple):
    """Stands for a class of torch's storages."""

    name: str


def read_torch_file(path: Path, what: str = _TENSORS, classes: Collection[str] = ()) -> Any:
    """Read what ``torch.save`` wrote to ``path``, with arrays instead of tensors, bfloat16 as float32.

    Objects of the ``classes``, full names, become a :class:`StandIn`. Raises CheckpointError, which says that the file
    is not ``what`` was expected, if it holds anything else than tensors, containers, plain values and settings of
    argparse and yacs, or is damaged.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(_ZIP_START)) == _ZIP_START:
                return _read_archive(stream, classes)
            stream.seek(0)
            return _read_old_file(stream, classes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _RefusedError as error:
        reason = str(error)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"{_DAMAGED} ({shorten(lines[0])})"
    raise CheckpointError(f"{path}: not {what}: {reason}")


def flatten_tensors(content: Mapping[Any, Any], to_array: Callable[[Any], NDArray[Any] | None]) -> Arrays:
    """Return the tensors in ``content`` and in the sections below it, whose names go before theirs with a dot.

    ``to_array`` returns the numbers of a tensor, and None for anything else.
    """
    return _flatten_section(content, to_array, "", 0)


def explain_refusal(name: str) -> str:
    """Return the reason for which a file is refused that holds an object of the class ``name``."""
    return (
        f"it holds an object of {name}, and reading anything but tensors would run code; save the model's "
        "state_dict() and give that file"
    )


class _RefusedError(Exception):
    """The file holds what is not read; the message is the reason."""


def _flatten_section(
    content: Mapping[Any, Any], to_array: Callable[[Any], NDArray[Any] | None], prefix: str, depth: int
) -> Arrays:
    arrays: Arrays = {}
    for name, value in content.items():
        array = to_array(value)
        if array is not None:
            arrays[f"{prefix}{name}"] = array
        elif isinstance(value, Mapping) and name not in _TRAINING_STATE and depth < _DEEPEST:
            arrays |= _flatten_section(value, to_array, f"{prefix}{name}.", depth + 1)
    return arrays


def _read_archive(stream: IO[bytes], classes: Collection[str]) -> Any:
    """Read an archive: ``data.pkl`` and a file of numbers for each storage, in one folder."""
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "constants.pkl" in members:
            raise _RefusedError(TORCHSCRIPT)
        for info in members.values():
            # torch compresses nothing, and a compressed file could be as large as it likes
            if info.compress_type != zipfile.ZIP_STORED:
                raise _RefusedError(f"{_DAMAGED} ({info.filename} is compressed)")
        order: _ByteOrder = "<"
        if "byteorder" in members and archive.read(members["byteorder"]) == b"big":
            order = ">"

        def read_numbers(kind: _NumberType, key: str, count: int) -> NDArray[Any]:
            return _decode_numbers(archive.read(members[f"data/{key}"]), kind, count, order)

        pickled = archive.read(members["data.pkl"])
        return _TensorUnpickler(io.BytesIO(pickled), classes, read_numbers).load()


def _read_old_file(stream: IO[bytes], classes: Collection[str]) -> Any:
    """Read five pickles, of which the fourth is the content, and the storages that the fifth lists."""
    # the tensors are made before their numbers are there, which come behind them
    if _TensorUnpickler(stream, ()).load() != _OLD_START:
        raise _RefusedError(_DAMAGED)
    _TensorUnpickler(stream, ()).load()  # version of the format
    system = _TensorUnpickler(stream, ()).load()
    order: _ByteOrder = "<" if system.get("little_endian", True) else ">"
    storages: dict[str, NDArray[Any]] = {}
    kinds: dict[str, _NumberType] = {}

    def reserve_numbers(kind: _NumberType, key: str, count: int) -> NDArray[Any]:
        # numbers of a file take at least a byte each
        if count > _count_bytes(stream):
            raise _RefusedError(_DAMAGED)
        if key not in storages:
            kinds[key] = kind
            storages[key] = np.zeros(count, _decode_numbers(b"", kind, 0, order).dtype)
        return storages[key]

    content = _TensorUnpickler(stream, classes, reserve_numbers).load()
    for key in _TensorUnpickler(stream, ()).load():
        (count,) = np.frombuffer(stream.read(8), f"{order}i8")
        width = np.dtype(_NUMBER_TYPES[kinds[key].name]).itemsize
        numbers = _decode_numbers(stream.read(int(count) * width), kinds[key], int(count), order)
        storages.pop(key)[:] = numbers
    if storages:
        raise _RefusedError(_DAMAGED)
    return content


def _count_bytes(stream: IO[bytes]) -> int:
    place = stream.tell()
    count = stream.seek(0, io.SEEK_END)
    stream.seek(place)
    return count


def _decode_numbers(content: bytes, kind: _NumberType, count: int, order: _ByteOrder) -> NDArray[Any]:
    """Return the ``count`` numbers of a storage in this machine's byte order."""
    numbers = np.frombuffer(content, np.dtype(_NUMBER_TYPES[kind.name]).newbyteorder(order))
    if len(numbers) != count:
        raise _RefusedError(_DAMAGED)
    if kind.name == "BFloat16Storage":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(numbers.dtype.newbyteorder("="))


class _TensorUnpickler(pickle.Unpickler):
    """Makes containers and arrays; ``read_numbers`` gives those of a storage by its type, key and count."""

    def __init__(
        self,
        stream: IO[bytes],
        classes: Collection[str],
        read_numbers: Callable[[_NumberType, str, int], NDArray[Any]] | None = None,
    ) -> None:
        super().__init__(stream, encoding="utf-8")
        self._read_numbers = read_numbers
        self._storages: dict[str, NDArray[Any]] = {}
        # made for each file, because a pickle may set attributes of what it names
        stand_ins = {name: type("StandIn", (StandIn,), {}) for name in (*classes, "argparse.Namespace")}
        self._admitted: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "collections.Counter": type("Counter", (dict,), {}),
            "__builtin__.set": set,
            "torch.Size": tuple,
            "torch.device": lambda *parts: ":".join(map(str, parts)),
            "torch._utils._rebuild_tensor": _rebuild_tensor,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils._rebuild_parameter": _return_first,
            "torch._utils._rebuild_parameter_with_state": _return_first,
            # yacs's dictionary of settings
            "yacs.config.CfgNode": type("Settings", (dict,), {}),
            **stand_ins,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name in the pickle; raises _RefusedError if nothing does."""
        if module == "torch" and name in _NUMBER_TYPES:
            return _NumberType(name)
        named = f"{module}.{name}"
        if named not in self._admitted:
            raise _RefusedError(explain_refusal(named))
        return self._admitted[named]

    def persistent_load(self, pid: Any) -> Any:
        """Return the numbers of a storage, or the class of a module, which old files have beside its source code.

        ``pid`` is ("storage", type, key, device, count), and in old files a view; or ("module", class, file, source).
        """
        if pid[0] == "module":
            return pid[1]
        word, kind, key, _device, count, *view = pid
        if word != "storage" or not isinstance(kind, _NumberType) or any(view) or self._read_numbers is None:
            raise _RefusedError(_DAMAGED)
        if key not in self._storages:
            self._storages[key] = self._read_numbers(kind, key, count)
        return self._storages[key]


def _rebuild_tensor(
    storage: NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> NDArray[Any]:
    """Return the view of ``storage`` that a tensor is, with ``stride`` in numbers; it never leaves the storage."""
    count = math.prod(size)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    sides_fit = all(side >= 0 for side in size) and all(step >= 0 for step in stride)
    # a tensor that repeats its numbers could be larger than any memory
    if offset < 0 or not sides_fit or (count > 0 and last >= len(storage)) or count > len(storage):
        raise _RefusedError(_DAMAGED)
    width = storage.itemsize
    steps = tuple(step * width for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps)


def _return_first(value: Any, *_: Any) -> Any:
    """Return the tensor that a parameter is made of."""
    return value
