"""The machine as far as a result may tell of it: versions, drivers and the chip, but no names and no places."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ehm.backends import ascend
from ehm.backends.base import Backend
from ehm.backends.common import measure_host_memory
from ehm.doctor.findings import find_nvidia_driver
from ehm.installation import describe_version
from ehm.processors import count_available_processors

__all__ = ["describe_machine", "hide_private"]

_PACKAGES = ("numpy", "numba", "torch", "torch-npu", "timm", "mindspore", "onnx", "onnxruntime", "onnxruntime-gpu")
_PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[/\\][\w.+@%-]+){2,}[/\\]?")
"""An absolute path of two parts or more; a single one, as in "and/or", says nothing of a machine."""
_QUOTED_PATH = re.compile(r"""(['"])[~/][^'"]*\1""")
"""A path in quotes, which may hold spaces."""
_EVERYBODY = ("root", "user", "localhost")
"""Names that tell nothing."""
_FEWEST_LETTERS = 3
"""Shorter names of hosts and users may be parts of words."""


def describe_machine(backend: Backend) -> dict[str, Any]:
    """Return versions, drivers, processor and device, as plain JSON."""
    info = backend.describe_device()
    software = ascend.find_software()
    facts: dict[str, Any] = {
        "ehm": describe_version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}".strip(", "),
        "processor": _name_processor(),
        "cores": count_available_processors(),
        "memory_gib": round(measure_host_memory() / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "device": info.description,
        "devices": info.count,
        "device_memory_gib": None if info.memory_bytes is None else round(info.memory_bytes / 2**30, 1),
        "dtypes": list(info.dtypes),
        "nvidia_driver": find_nvidia_driver(),
        "ascend_driver": software.driver,
        "cann": software.cann,
    }
    packages = dict(info.versions)
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    facts["packages"] = packages
    return facts


def hide_private(text: str) -> str:
    """Replace paths and the names of this host and its user, which errors may hold, in ``text``."""
    text = _PATH.sub("PATH", _QUOTED_PATH.sub(r"\1PATH\1", text))
    for word, name in ((_read_host(), "HOST"), (_read_user(), "USER")):
        if len(word) >= _FEWEST_LETTERS and word not in _EVERYBODY:
            text = re.sub(rf"\b{re.escape(word)}\b", name, text)
    return text


def _name_processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # no Linux
    return platform.processor() or platform.machine()


def _read_host() -> str:
    return socket.gethostname()


def _read_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in some containers
        return ""
