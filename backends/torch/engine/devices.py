"""The differences between torch's devices, as data. Everything else is device-neutral PyTorch."""

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
from ehm.backends.common import measure_host_memory, measure_resident_memory
from ehm.errors import BackendError

__all__ = [
    "FACTS",
    "DeviceFacts",
    "allow_tf32",
    "autocast_to",
    "choose_device",
    "choose_dtype",
    "describe_device",
    "get_device_module",
    "is_busy",
    "read_peak_memory",
]


# numbers of glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@dataclass(frozen=True)
class DeviceFacts:
    """Facts about one kind of device."""

    dtypes: tuple[str, ...]
    """Types of a step's arithmetic; the first is that of ``dtype: auto``."""
    distributed: str
    """The collectives between processes."""
    fused_adamw: bool = True
    """True if AdamW has a kernel of its own."""
    fused_adamw_scales: bool = True
    """True if AdamW's kernel takes the verdict of a gradient scaler; a float16 step would otherwise wait for it."""
    fuses_attention_with_bias: bool = True
    """True if torch's fused attention takes a bias for the scores, as that of relative positions, and learns it."""
    shards_in_step_dtype: bool = True
    """True if FSDP's blocks are gathered in the type of the step's arithmetic: bfloat16 is half of float32.

    Autocast has to compute norms in float32 then, whatever the type of their weights is, which a CPU's does not.
    """
    compiler: str | None = "inductor"
    """The backend of torch.compile; None if there is none to rely on."""
    channels_last: bool = False
    """True if convolutions are faster on maps whose channels lie side by side in memory."""
    allow_tf32: Callable[[bool], None] | None = None
    """A function that lets float32 matrix products in this process round their factors, or not; None if there is none.
    """
    synchronises_norms: bool = True
    """True if batch norm can take its moments over all processes."""
    visible_devices: str | None = None
    """The environment variable that hides devices from a process."""
    plugin: str | None = None
    """The package that teaches torch the device."""
    explain: Callable[[BaseException | None], str] | None = None
    """A function that says why the plug-in does not work here, from the error of its import if there was one."""
    prepare: Callable[[], None] = lambda: None
    """Called in a process before it trains."""


def _list_cpu_dtypes() -> tuple[str, ...]:
    """Return the types of a CPU, bfloat16 first only if the processor multiplies it natively."""
    native = torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_cpu_flag("avx512_bf16", "amx_bf16")
    if native:
        return "bfloat16", "float32", "float16"
    # emulated bfloat16 is slower than float32
    return "float32", "bfloat16", "float16"


def _has_cpu_flag(*flags: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("flags"):
                    return not set(flags).isdisjoint(line.split())  # all cores have the same
    except OSError:
        pass  # no Linux
    return False


def _keep_memory() -> None:
    """Let the C library keep large blocks of memory; does nothing with other libraries than glibc."""
    # By default glibc has the system map and clear every block above 32 MB in every step. A step of ViT-B in bfloat16
    # takes 1.44 s without that instead of 1.57 (16 images, 2 cores, medians of 6).
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _allow_tf32_of_cuda(wanted: bool) -> None:
    torch.set_float32_matmul_precision("high" if wanted else "highest")


def _allow_hf32_of_npu(wanted: bool) -> None:
    torch.get_device_module("npu").matmul.allow_hf32 = wanted


FACTS: dict[str, DeviceFacts] = {
    "cpu": DeviceFacts(
        _list_cpu_dtypes(),
        distributed="gloo",
        shards_in_step_dtype=False,
        synchronises_norms=False,
        prepare=_keep_memory,
    ),
    # cuDNN's kernels for tensor cores take channels last, and copy other maps before and after each convolution
    # (NVIDIA, "Convolutional Layers User's Guide").
    "cuda": DeviceFacts(
        ("bfloat16", "float32", "float16"),
        distributed="nccl",
        channels_last=True,
        allow_tf32=_allow_tf32_of_cuda,
        visible_devices="CUDA_VISIBLE_DEVICES",
    ),
    # torch-npu 2.14: its fused AdamW takes no found_inf; triton-ascend's compiler fails on backward passes
    # (triton-ascend issue 424), so that none is offered until that is fixed. Its scaled_dot_product_attention has no
    # kernel for a bias of numbers and takes torch's composition, which computes bfloat16 in float32 (op-plugin,
    # ScaledDotProductAttentionKernelNpuOpApi.cpp). CANN's fused attention adds a bias (pse) without a gradient of it
    # ("reserved" in the document of aclnnFlashAttentionScoreGradV2).
    "npu": DeviceFacts(
        ("bfloat16", "float32", "float16"),
        distributed="hccl",
        fused_adamw_scales=False,
        fuses_attention_with_bias=False,
        compiler=None,
        allow_tf32=_allow_hf32_of_npu,
        visible_devices="ASCEND_RT_VISIBLE_DEVICES",
        plugin="torch_npu",
        explain=ascend.explain_absence,
    ),
}
"""The facts by torch's name of the device. A package that adds a device to torch adds its row here."""


def choose_device(device: str) -> torch.device:
    """Return the torch device that a ``--device`` value means; raises BackendError if it is not present.

    Only the plug-in of the device that is asked for is imported; for ``auto`` every one that is installed.
    """
    kind = device.partition(":")[0]
    failures = _import_plugins(kind)
    # torch 2.6 has no check_available in current_accelerator
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        if present is not None and present.type in FACTS:
            return present
        return torch.device("cpu")
    if kind != "cpu" and (present is None or present.type != kind):
        raise BackendError(f"--device {device}: {_explain_absence(kind, failures.get(kind))}")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise BackendError(
            f"--device {device}: expected {kind}, or {kind}:N for the N-th one, counted from 0"
        ) from None
    if chosen.index is not None and chosen.type != "cpu" and chosen.index >= torch.accelerator.device_count():
        raise BackendError(f"--device {device}: there are {torch.accelerator.device_count()}, numbered from 0")
    return chosen


def _import_plugins(kind: str) -> dict[str, BaseException]:
    """Import the plug-in of a ``kind`` of device, or all for "auto"; return the errors by kind."""
    failures: dict[str, BaseException] = {}
    for name, facts in FACTS.items():
        if facts.plugin is not None and kind in ("auto", name) and find_spec(facts.plugin) is not None:
            try:
                import_module(facts.plugin)
            except (ImportError, RuntimeError, OSError) as error:  # one of the vendor's libraries is missing
                failures[name] = error
    return failures


def _explain_absence(kind: str, error: BaseException | None) -> str:
    explain = FACTS[kind].explain
    if explain is not None:
        return explain(error)
    return f"{error or f'torch {torch.__version__} sees no such device'}; --device cpu works here"


def get_device_module(device: torch.device) -> Any:
    """Return torch's module of functions for ``device``: ``torch.cuda``, ``torch.npu`` ..."""
    return torch.get_device_module(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the type in which a step computes on ``device``; raises BackendError if the device lacks it."""
    offered = FACTS[device.type].dtypes
    name = offered[0] if dtype == "auto" else dtype
    if name not in offered:
        raise BackendError(f"optim.dtype {dtype}: not available on {device.type}, which has {', '.join(offered)}")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def autocast_to(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which matrix products are computed in ``dtype``; it does nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def allow_tf32(device: torch.device, wanted: bool) -> None:
    """Let ``device`` round the factors of float32 matrix products in this process if ``wanted``, else not.

    Convolutions are left as torch and its plug-ins have them, which round theirs.
    """
    allow = FACTS[device.type].allow_tf32
    if allow is not None:
        allow(wanted)


def describe_device(device: torch.device) -> DeviceInfo:
    """Return the name, number, memory and types of ``device``."""
    versions = {"torch": str(torch.__version__)}
    plugin = FACTS[device.type].plugin
    if plugin is not None:
        versions[plugin.replace("_", "-")] = str(import_module(plugin).__version__)
    if device.type == "cpu":
        count = 1
        memory = measure_host_memory()
        text = f"{os.cpu_count()} cores"
    else:
        count = torch.accelerator.device_count()
        module = get_device_module(device)
        _, memory = module.mem_get_info(device)
        text = module.get_device_name(device)
    return DeviceInfo(device.type, text, count, memory, FACTS[device.type].dtypes, versions)


def is_busy(device: torch.device) -> bool:
    """Return whether ``device`` has not yet done all that its stream was given; a CPU always has."""
    if device.type == "cpu":
        return False
    return not get_device_module(device).current_stream(device).query()


def read_peak_memory(device: torch.device) -> int:
    """Return the most bytes that tensors held on ``device`` since the last call; of a CPU, what the process holds."""
    if device.type == "cpu":
        return measure_resident_memory()
    module = get_device_module(device)
    peak = int(module.max_memory_allocated(device))
    module.reset_peak_memory_stats(device)
    return peak
