"""What really differs between torch's devices, as data. Everything else is device-neutral PyTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ehm.backends.base import DeviceInfo
from ehm.errors import BackendError

__all__ = ["FACTS", "DeviceFacts", "arithmetic", "autocast", "describe", "pick"]


@dataclass(frozen=True)
class DeviceFacts:
    """Facts about one kind of device; the first of ``dtypes`` is what ``dtype: auto`` means."""

    dtypes: tuple[str, ...]
    fused_adamw: bool


def _cpu_dtypes() -> tuple[str, ...]:
    """bfloat16 first only where the processor multiplies it natively; elsewhere it is emulated and slower."""
    native = torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_cpu_flag("avx512_bf16", "amx_bf16")
    return ("bfloat16", "float32") if native else ("float32", "bfloat16")


def _has_cpu_flag(*flags: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii") as file:
            present = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return any(flag in present for flag in flags)


FACTS: dict[str, DeviceFacts] = {
    "cpu": DeviceFacts(_cpu_dtypes(), fused_adamw=True),
    "cuda": DeviceFacts(("bfloat16", "float32"), fused_adamw=True),
}


def pick(device: str) -> torch.device:
    """The torch device that a ``--device`` value means; raises BackendError where it is not present."""
    present = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        return present if present is not None and present.type in FACTS else torch.device("cpu")
    chosen = torch.device(device)
    if chosen.type != "cpu" and (present is None or present.type != chosen.type):
        raise BackendError(f"--device {device}: torch {torch.__version__} sees no such device; --device cpu works here")
    if chosen.index is not None and chosen.type != "cpu" and chosen.index >= torch.accelerator.device_count():
        raise BackendError(f"--device {device}: there are {torch.accelerator.device_count()}, numbered from 0")
    return chosen


def arithmetic(dtype: str, device: torch.device) -> torch.dtype:
    """The type in which a step computes on ``device``; raises BackendError where the device lacks it."""
    offered = FACTS[device.type].dtypes
    name = offered[0] if dtype == "auto" else dtype
    if name not in offered:
        raise BackendError(f"optim.dtype {dtype}: not available on {device.type}, which has {', '.join(offered)}")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in ``dtype``, where it is not float32 anyway."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def describe(device: torch.device) -> DeviceInfo:
    """Name, number, memory and types of ``device``."""
    if device.type == "cpu":
        count, memory, text = 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), f"{os.cpu_count()} cores"
    else:
        count = torch.accelerator.device_count()
        module = torch.get_device_module(device)
        memory, text = module.mem_get_info(device)[1], module.get_device_name(device)
    return DeviceInfo(device.type, text, count, memory, FACTS[device.type].dtypes, {"torch": torch.__version__})
