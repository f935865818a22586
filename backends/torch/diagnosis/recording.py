"""A record of what torch runs: each operator with the dtypes of its tensors and the place that called it.

An operator that torch composes of others is in the record, and so are those that it is composed of. On a machine
without an NPU the record is what torch does above that machine's own kernels: what it does for another device only,
such as a copy to the host, is not in it. The simulated NPU of the tests shows that too.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ehm
from ehm.backends.torch.diagnosis.kernels import read_native_operators

__all__ = ["Call", "find_call_site", "list_dtypes", "record_operators"]

_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep  # all of backends/torch
_TORCH = os.path.dirname(torch.__file__) + os.sep
_ROOT = os.path.dirname(os.path.dirname(ehm.__file__)) + os.sep
_RUNNER = os.path.join(os.path.dirname(__file__), "callables.py")  # runs networks of others; below it is only ehm
_INSTALLED = f"{os.sep}site-packages{os.sep}"
_COMPOSITE = torch._C.DispatchKey.CompositeExplicitAutograd


class Call(NamedTuple):
    """An operator (``add.Tensor``; other namespaces than aten as ``ns::name``) as one place in the code calls it.

    ``waits``: it copies between host and device, and the host waits for that.
    """

    operator: str
    dtypes: tuple[str, ...]
    site: str
    waits: bool = False


def find_call_site(own: str = _OWN) -> str:
    """Return ``file:line`` of the innermost running code in the folder ``own``, or else of any that is not torch's.

    ``own`` ends with a separator, and is this backend if it is not given; packages that are installed in it do not
    count. Operators that autograd runs have no such place: they are named after the operation whose gradient they
    compute.
    """
    frame: FrameType | None = sys._getframe(1)
    other = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _RUNNER:
            other = other or "the module"
            break
        if file.startswith(_TORCH):
            if frame.f_code.co_name == "_engine_run_backward":
                break  # the frames below called the backward pass, not this operator
        elif file != __file__ and "/torch_npu/" not in file:
            place = f"{_shorten(file, own)}:{frame.f_lineno}"
            if file.startswith(own) and (own == _OWN or _INSTALLED not in file):
                return place
            other = other or place
        frame = frame.f_back
    if other:
        return other
    node = torch._C._current_autograd_node()
    if node is None:
        return "backward"
    return f"backward ({node.name()})"


def _shorten(file: str, own: str) -> str:
    short = file.rpartition(_INSTALLED)[2].removeprefix(_ROOT)
    return short if own == _OWN else short.removeprefix(own)


def list_dtypes(*values: Any) -> tuple[str, ...]:
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


@cache
def _is_composed(operator: Any) -> bool:
    """Tell whether torch-npu runs ``operator`` by torch's composition of other operators, which is no mere view."""
    name = operator.name()
    if name.removeprefix("aten::") in read_native_operators() or name.startswith("aten::_scaled_dot_product"):
        return False
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "PrivateUse1"):
        return False  # torch-npu is here, and newer than the list
    returns = operator._schema.returns
    is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
    return not is_view and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd")


class _Recorder(TorchDispatchMode):
    def __init__(self, device: str | None, calls: Counter[Call], own: str) -> None:
        super().__init__()
        self._device = device
        self._calls = calls
        self._own = own
        self._composing: Any = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._run(func, args, kwargs)
        devices = set()
        for value in _flatten_values((args, kwargs, result)):
            if isinstance(value, Tensor):
                devices.add(value.device.type)
        if self._device in devices or (self._device is None and devices != {"meta"}):
            name = func.name().removeprefix("aten::")
            in_background = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            waits = len(devices) > 1 and name in ("_to_copy", "copy_") and not in_background
            self._calls[Call(name, list_dtypes(args, kwargs, result), find_call_site(self._own), waits)] += 1
        return result

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run ``func``, by torch's composition of other operators, which are recorded, if an NPU runs it that way."""
        # a composition may call the operator itself, which then has a kernel
        if func is self._composing or not _is_composed(func):
            return func(*args, **kwargs)
        outer = self._composing
        self._composing = func
        try:
            with self, torch._C._AutoDispatchBelowAutograd():
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        finally:
            self._composing = outer


def _flatten_values(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for element in value:
            yield from _flatten_values(element)
    elif isinstance(value, dict):
        yield from _flatten_values(tuple(value.values()))
    else:
        yield value


@contextmanager
def record_operators(device: str | None = "cpu", own: str = _OWN) -> Iterator[Counter[Call]]:
    """Count every operator on tensors of ``device`` (torch's name of a kind of device) within the block.

    ``device`` None counts those of all devices. Places are told as :func:`find_call_site` does with ``own``.
    """
    calls: Counter[Call] = Counter()
    with _Recorder(device, calls, own):
        yield calls
