"""What differs between MindSpore's targets, as data, and which of them a ``--device`` value means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import mindspore as ms

from ehm.backends.base import DeviceInfo
from ehm.backends.common import host_memory
from ehm.errors import BackendError

__all__ = ["FACTS", "Target", "TargetFacts", "choose_dtype", "choose_target", "describe_target", "use_target"]


@dataclass(frozen=True)
class TargetFacts:
    """``name`` is MindSpore's own; ``dtypes`` are the types of a step's arithmetic, the first ``dtype: auto``."""

    name: str
    dtypes: tuple[str, ...]


FACTS: dict[str, TargetFacts] = {
    "ascend": TargetFacts("Ascend", ("bfloat16", "float32", "float16")),
    "cpu": TargetFacts("CPU", ("float32", "float16")),  # its matrix product has no kernel for bfloat16 (2.10)
}
"""By what follows ``mindspore:`` in ``--device``."""


@dataclass(frozen=True)
class Target:
    """One kind of device, and the number of the one that is meant, if any is."""

    kind: str
    index: int | None = None


def choose_target(device: str) -> Target:
    """The target that ``mindspore``, ``mindspore:cpu``, ``mindspore:ascend`` or ``mindspore:ascend:N`` means.

    Raises BackendError where it is not present. Without a target it is the NPU where there is one.
    """
    _, _, rest = device.partition(":")
    kind, _, index = rest.partition(":")
    if kind not in ("", *FACTS) or (index and (kind != "ascend" or not index.isdecimal())):
        raise BackendError(
            f"--device {device}: expected mindspore, mindspore:cpu, mindspore:ascend, or mindspore:ascend:N for the "
            "N-th NPU, counted from 0"
        )
    present = ms.device_context.ascend.is_available()
    if kind == "ascend" and not present:
        raise BackendError(
            f"--device {device}: mindspore {ms.__version__} sees no NPU; ehm doctor says what is there of driver and "
            "CANN; --device mindspore:cpu works here"
        )
    if index and int(index) >= (count := ms.device_context.ascend.device_count()):
        raise BackendError(f"--device {device}: there are {count}, numbered from 0")
    return Target(kind or ("ascend" if present else "cpu"), int(index) if index else None)


def use_target(target: Target) -> None:
    """Let this process compute on ``target``; MindSpore allows one choice a process."""
    name = FACTS[target.kind].name
    try:
        if target.index is None:
            ms.set_device(name)
        else:
            ms.set_device(name, target.index)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise BackendError(f"--device mindspore:{target.kind}: MindSpore cannot use it: {reason}") from None


def choose_dtype(dtype: str, target: Target) -> Any:
    """MindSpore's type in which a step computes on ``target``; raises BackendError where the target lacks it."""
    offered = FACTS[target.kind].dtypes
    name = offered[0] if dtype == "auto" else dtype
    if name not in offered:
        raise BackendError(
            f"optim.dtype {dtype}: not available on mindspore:{target.kind}, which has {', '.join(offered)}"
        )
    return getattr(ms, name)


def describe_target(target: Target) -> DeviceInfo:
    """Name, number, memory and types of ``target``."""
    if target.kind == "cpu":
        count, memory = 1, host_memory()
        text = f"CPU target, {os.cpu_count()} cores"
    else:
        count = ms.device_context.ascend.device_count()
        properties = ms.hal.get_device_properties(target.index or 0, "Ascend")
        memory, text = properties.total_memory, properties.name
    return DeviceInfo("mindspore", text, count, memory, FACTS[target.kind].dtypes, {"mindspore": str(ms.__version__)})
