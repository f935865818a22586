"""A record of what torch runs: each operator with the dtypes of its tensors and the place that called it.

On a machine without an accelerator the record is what torch does above that machine's own kernels: what it does for
another device only, such as a copy to the host, is not in it. The simulated NPU of the tests shows that too.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ehm

__all__ = ["Call", "call_site", "dtypes_of", "record_operators"]

_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep  # all of backends/torch
_TORCH = os.path.dirname(torch.__file__) + os.sep
_ROOT = os.path.dirname(os.path.dirname(ehm.__file__)) + os.sep


class Call(NamedTuple):
    """An operator (``add.Tensor``; other namespaces than aten as ``ns::name``) as one place in the code calls it.

    ``waits``: it copies between host and device, and the host waits for that.
    """

    operator: str
    dtypes: tuple[str, ...]
    site: str
    waits: bool = False


def call_site() -> str:
    """Return ``file:line`` of the innermost running code of this backend, or else of any that is not torch's.

    Operators that autograd runs have no such place: they are named after the operation whose gradient they compute.
    """
    frame: FrameType | None = sys._getframe(1)
    other = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_TORCH):
            if frame.f_code.co_name == "_engine_run_backward":
                break  # the frames below called the backward pass, not this operator
        elif file != __file__ and "/torch_npu/" not in file:
            short = file.rpartition(f"site-packages{os.sep}")[2].removeprefix(_ROOT)
            place = f"{short}:{frame.f_lineno}"
            if file.startswith(_OWN):
                return place
            other = other or place
        frame = frame.f_back
    if other:
        return other
    node = torch._C._current_autograd_node()
    if node is None:
        return "backward"
    return f"backward ({node.name()})"


def dtypes_of(*values: Any) -> tuple[str, ...]:
    """Return the dtypes of the tensors in ``values``, each once, in order; a single float64 is told apart."""
    found: dict[str, None] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            name = str(value.dtype).removeprefix("torch.")
            if name == "float64" and not value.dim():
                name = "one float64"  # torch's own gradient scaler computes such values, which is harmless
            found[name] = None
        elif isinstance(value, (list, tuple)):
            for element in value:
                visit(element)
        elif isinstance(value, dict):
            visit(tuple(value.values()))

    visit(values)
    return tuple(found)


class _Recorder(TorchDispatchMode):
    def __init__(self, device: str, calls: Counter[Call]) -> None:
        super().__init__()
        self._device = device
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        devices = set()
        for value in _flatten_values((args, kwargs, result)):
            if isinstance(value, Tensor):
                devices.add(value.device.type)
        if self._device in devices:
            name = func.name().removeprefix("aten::")
            in_background = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            waits = len(devices) > 1 and name in ("_to_copy", "copy_") and not in_background
            self._calls[Call(name, dtypes_of(args, kwargs, result), call_site(), waits)] += 1
        return result


def _flatten_values(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for element in value:
            yield from _flatten_values(element)
    elif isinstance(value, dict):
        yield from _flatten_values(tuple(value.values()))
    else:
        yield value


@contextmanager
def record_operators(device: str = "cpu") -> Iterator[Counter[Call]]:
    """Count every operator on tensors of ``device`` (torch's name of a kind of device) within the block."""
    calls: Counter[Call] = Counter()
    with _Recorder(device, calls):
        yield calls
