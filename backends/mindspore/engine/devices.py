"""The differences between MindSpore's targets, as data, and the choice of one by a ``--device`` value."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import mindspore as ms

from ehm.backends.base import DeviceInfo
from ehm.backends.common import measure_host_memory, measure_resident_memory
from ehm.errors import BackendError, take_first_line

__all__ = [
    "FACTS",
    "Target",
    "TargetFacts",
    "choose_dtype",
    "choose_target",
    "describe_target",
    "get_current_facts",
    "is_busy",
    "read_peak_memory",
    "use_target",
]


@dataclass(frozen=True)
class TargetFacts:
    """Facts about one target of MindSpore."""

    name: str
    """MindSpore's name of it."""
    dtypes: tuple[str, ...]
    """Types of a step's arithmetic; the first is that of ``dtype: auto``."""
    fused_attention_dtypes: tuple[str, ...] = ()
    """Types in which ``ops.flash_attention_score`` computes attention and keeps no probabilities for the gradient."""
    gather_dtypes: tuple[str, ...] = ("float32", "float16")
    """Types in which rows can be gathered, and gradients be added to them; other rows are gathered in float32."""
    jit_level: str = "O0"
    """Level of a graph's optimisation: MindSpore's default is ``O0``; ``O1`` fuses operators."""


FACTS: dict[str, TargetFacts] = {
    # MindSpore 2.10's page of flash_attention_score names these two types, and Ascend alone. Pages of gather and of its
    # gradient name none, and no bfloat16 kernel of theirs was ever seen to run, so that rows are gathered in float32.
    # jit fuses no operators on an A2 unless it is asked to.
    "ascend": TargetFacts(
        "Ascend",
        ("bfloat16", "float32", "float16"),
        fused_attention_dtypes=("float16", "bfloat16"),
        jit_level="O1",
    ),
    # its matrix product has no kernel for bfloat16 (2.10)
    "cpu": TargetFacts("CPU", ("float32", "float16")),
}
"""The facts by the name that follows ``mindspore:`` in ``--device``."""


@dataclass(frozen=True)
class Target:
    """A kind of device, and the number of a certain one, or None."""

    kind: str
    index: int | None = None


def choose_target(device: str) -> Target:
    """Return the target of ``mindspore``, ``mindspore:cpu``, ``mindspore:ascend`` or ``mindspore:ascend:N``.

    ``mindspore`` alone is the NPU if there is one. Raises BackendError if the target is not present.
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
    if index:
        count = ms.device_context.ascend.device_count()
        if int(index) >= count:
            raise BackendError(f"--device {device}: there are {count}, numbered from 0")
        return Target(kind, int(index))
    if kind:
        return Target(kind)
    return Target("ascend" if present else "cpu")


def _refuse_graph_cache() -> None:
    """Raise BackendError if MindSpore shall keep compiled graphs between processes."""
    # MindSpore 2.10 looks a graph up by its number in the order of compilation, not by what it computes, and binds no
    # weights to the graph of a function that it finds: a second run with the same settings had losses of NaN on a CPU.
    if os.environ.get("MS_COMPILER_CACHE_ENABLE", "0") != "0":
        raise BackendError(
            "MS_COMPILER_CACHE_ENABLE: unset it; MindSpore finds the graphs of earlier runs again without their "
            "weights, and takes them for those of other settings"
        )


def use_target(target: Target) -> None:
    """Let this process compute on ``target``; MindSpore allows one choice a process."""
    _refuse_graph_cache()
    name = FACTS[target.kind].name
    try:
        if target.index is None:
            ms.set_device(name)
        else:
            ms.set_device(name, target.index)
    except RuntimeError as error:
        reason = take_first_line(error)  # a stack of C++ calls follows
        raise BackendError(f"--device mindspore:{target.kind}: MindSpore cannot use it: {reason}") from None


def get_current_facts() -> TargetFacts:
    """Return the facts of the target that this process computes on; MindSpore has one for all that a process does."""
    name = ms.get_context("device_target")
    for facts in FACTS.values():
        if facts.name == name:
            return facts
    raise BackendError(f"MindSpore computes on {name} here, which ehm has no facts about")


def choose_dtype(dtype: str, target: Target) -> Any:
    """Return MindSpore's type in which a step computes on ``target``; raises BackendError if the target lacks it."""
    offered = FACTS[target.kind].dtypes
    name = offered[0] if dtype == "auto" else dtype
    if name not in offered:
        raise BackendError(
            f"optim.dtype {dtype}: not available on mindspore:{target.kind}, which has {', '.join(offered)}"
        )
    return getattr(ms, name)


def describe_target(target: Target) -> DeviceInfo:
    """Return the name, number, memory and types of ``target``."""
    if target.kind == "cpu":
        count = 1
        memory = measure_host_memory()
        text = f"CPU target, {os.cpu_count()} cores"
    else:
        count = ms.device_context.ascend.device_count()
        # ms.runtime counts the memory that tensors hold, and has no function for that of a device (2.10). The one of
        # ms.hal answers 0 until the device is in use, and for the device in use whatever number it is given.
        _start_device()
        properties = ms.hal.get_device_properties(target.index or 0, "Ascend")
        memory = properties.total_memory
        text = properties.name
    return DeviceInfo("mindspore", text, count, memory, FACTS[target.kind].dtypes, {"mindspore": str(ms.__version__)})


def _start_device() -> None:
    """Let the device of this process compute something."""
    (ms.Tensor(0.0, ms.float32) + 1).asnumpy()


def is_busy(target: Target) -> bool:
    """Return whether ``target`` has not yet done all that its stream was given; a CPU has no stream to ask."""
    if target.kind == "cpu":
        return False
    return not ms.runtime.current_stream().query()


def read_peak_memory(target: Target) -> int:
    """Return the most bytes that tensors held on ``target`` since the last call; of a CPU, what the process holds."""
    if target.kind == "cpu":
        return measure_resident_memory()
    peak = int(ms.runtime.max_memory_allocated())
    ms.runtime.reset_peak_memory_stats()
    return peak
