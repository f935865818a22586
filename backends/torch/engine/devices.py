"""What really differs between torch's devices, as data. Everything else is device-neutral PyTorch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from ehm.backends import ascend
from ehm.backends.base import DeviceInfo
from ehm.backends.common import host_memory
from ehm.errors import BackendError

__all__ = ["FACTS", "DeviceFacts", "autocast_to", "choose_device", "choose_dtype", "describe_device", "device_module"]


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


@dataclass(frozen=True)
class DeviceFacts:
    """Facts about one kind of device.

    ``dtypes``: types of a step's arithmetic, the first of which is what ``dtype: auto`` means. ``distributed``: the
    collectives between processes. ``fused_adamw``: AdamW has a kernel of its own, and ``fused_adamw_scales`` says
    whether that kernel takes a gradient scaler's verdict, without which a float16 step must wait for it.
    ``compiler``: the backend of torch.compile, None where there is none to rely on. ``synchronises_norms``: batch norm
    can take its moments over all processes. ``visible_devices``: the
    environment variable that hides devices from a process. ``plugin``: the package that teaches torch the device, and
    ``explain`` says in a sentence why it does not work here, given what its import raised, if it did. ``prepare``:
    what a process does before it trains.
    """

    dtypes: tuple[str, ...]
    distributed: str
    fused_adamw: bool = True
    fused_adamw_scales: bool = True
    compiler: str | None = "inductor"
    synchronises_norms: bool = True
    visible_devices: str | None = None
    plugin: str | None = None
    explain: Callable[[BaseException | None], str] | None = None
    prepare: Callable[[], None] = lambda: None


def _cpu_dtypes() -> tuple[str, ...]:
    """bfloat16 first only where the processor multiplies it natively; elsewhere it is emulated and slower."""
    native = torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_cpu_flag("avx512_bf16", "amx_bf16")
    return ("bfloat16", "float32", "float16") if native else ("float32", "bfloat16", "float16")


def _has_cpu_flag(*flags: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii") as file:
            present = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return any(flag in present for flag in flags)


def _keep_memory() -> None:
    """Let the C library keep large blocks of memory, instead of having the system map and clear them in every step.

    That is what glibc does with every block above 32 MB. A step of ViT-B in bfloat16 took 1.44 s instead of 1.57 so
    (16 images, 2 cores, medians of 6). Does nothing with other libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


FACTS: dict[str, DeviceFacts] = {
    "cpu": DeviceFacts(_cpu_dtypes(), distributed="gloo", synchronises_norms=False, prepare=_keep_memory),
    "cuda": DeviceFacts(("bfloat16", "float32", "float16"), distributed="nccl", visible_devices="CUDA_VISIBLE_DEVICES"),
    # torch-npu 2.14: its fused AdamW takes no found_inf; triton-ascend's compiler fails on backward passes
    # (triton-ascend issue 424), so that none is offered until that is mended.
    "npu": DeviceFacts(
        ("bfloat16", "float32", "float16"),
        distributed="hccl",
        fused_adamw_scales=False,
        compiler=None,
        visible_devices="ASCEND_RT_VISIBLE_DEVICES",
        plugin="torch_npu",
        explain=ascend.explain_absence,
    ),
}
"""By torch's name of the device. A package that adds a device to torch adds its row here (``ehm.backends``)."""


def choose_device(device: str) -> torch.device:
    """The torch device that a ``--device`` value means; raises BackendError where it is not present.

    Only the plug-in of the device that is asked for is imported; for ``auto`` every one that is installed.
    """
    kind = device.partition(":")[0]
    failed: dict[str, BaseException] = {}
    for name, facts in FACTS.items():
        if facts.plugin is not None and kind in ("auto", name) and find_spec(facts.plugin) is not None:
            try:
                import_module(facts.plugin)
            except (ImportError, RuntimeError, OSError) as error:  # a library of the vendor's that is not there
                failed[name] = error
    present = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        return present if present is not None and present.type in FACTS else torch.device("cpu")
    if kind != "cpu" and (present is None or present.type != kind):
        raise BackendError(f"--device {device}: {_why_absent(kind, failed.get(kind))}")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise BackendError(
            f"--device {device}: expected {kind}, or {kind}:N for the N-th one, counted from 0"
        ) from None
    if chosen.index is not None and chosen.type != "cpu" and chosen.index >= torch.accelerator.device_count():
        raise BackendError(f"--device {device}: there are {torch.accelerator.device_count()}, numbered from 0")
    return chosen


def _why_absent(kind: str, error: BaseException | None) -> str:
    explain = FACTS[kind].explain
    if explain is not None:
        return explain(error)
    return f"{error or f'torch {torch.__version__} sees no such device'}; --device cpu works here"


def device_module(device: torch.device) -> Any:
    """torch's module of functions for ``device``: ``torch.cuda``, ``torch.npu`` ..."""
    return torch.get_device_module(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The type in which a step computes on ``device``; raises BackendError where the device lacks it."""
    offered = FACTS[device.type].dtypes
    name = offered[0] if dtype == "auto" else dtype
    if name not in offered:
        raise BackendError(f"optim.dtype {dtype}: not available on {device.type}, which has {', '.join(offered)}")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def autocast_to(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in ``dtype``, where it is not float32 anyway."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def describe_device(device: torch.device) -> DeviceInfo:
    """Name, number, memory and types of ``device``."""
    versions = {"torch": str(torch.__version__)}
    plugin = FACTS[device.type].plugin
    if plugin is not None:
        versions[plugin.replace("_", "-")] = str(import_module(plugin).__version__)
    if device.type == "cpu":
        count, memory, text = 1, host_memory(), f"{os.cpu_count()} cores"
    else:
        count = torch.accelerator.device_count()
        module = device_module(device)
        memory, text = module.mem_get_info(device)[1], module.get_device_name(device)
    return DeviceInfo(device.type, text, count, memory, FACTS[device.type].dtypes, versions)
