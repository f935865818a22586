"""One thing that was found, or not, and the look-ups that need no framework: machine, drivers, packages, variables."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ehm.backends import ascend
from ehm.backends.common import host_memory
from ehm.doctor.child import ask
from ehm.doctor.variables import VARIABLES
from ehm.processors import available_processors

__all__ = ["EXTRAS", "Finding", "machine", "nvidia_driver", "package", "variables"]

EXTRAS = {
    "numba": "",
    "torch": "torch",
    "torchvision": "torch",
    "timm": "torch",
    "torch-npu": "npu",
    "mindspore": "mindspore",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "serve",
    "scikit-learn": "tasks",
    "elpv-dataset": "elpv",
}
"""Packages to look for, each with the extra of ehm that installs it."""

OTHER_NAMES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime-cann", "onnxruntime-openvino")}
"""Packages that bring the same module."""

ASK_PROVIDERS = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
ROOT = Path("/")


@dataclass(frozen=True)
class Finding:
    """One row: ``ok``, ``missing`` (``mend`` gets it), ``absent`` hardware, or ``broken`` with the reason.

    ``facts`` are what a script may want of it, as plain JSON.
    """

    kind: Literal["machine", "variable", "package", "device"]
    name: str
    state: Literal["ok", "missing", "absent", "broken"]
    detail: str
    mend: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def machine() -> Iterator[Finding]:
    """Python, cores, memory, and the drivers of accelerators."""
    yield Finding("machine", "python", "ok", f"{platform.python_version()} on {platform.platform()}")
    usable, present = available_processors(), os.cpu_count()
    cores = str(usable) if usable == present else f"{usable} of {present}, which is all that this process may use"
    yield Finding("machine", "cores", "ok", cores)
    memory = host_memory()
    yield Finding("machine", "memory", "ok", f"{memory / 2**30:.1f} GiB", facts={"bytes": memory})
    yield _found("NVIDIA driver", nvidia_driver())
    found = ascend.find_software(ROOT)
    yield _found("Ascend driver", found.driver)
    inactive = ascend.Problem(
        f"{found.cann} in {found.cann_home}: not active in this shell", f"source {found.cann_script}"
    )
    if found.cann and not found.active:
        yield Finding("machine", "CANN", "broken", *inactive)
    else:
        yield _found("CANN", found.cann, f" in {found.cann_home}")


def variables() -> Iterator[Finding]:
    """The environment variables that change what a device does, those that are set."""
    for name in VARIABLES:
        if name in os.environ:
            yield Finding("variable", name, "ok", os.environ[name])


def package(name: str) -> Finding:
    """A package by its metadata, and whether it goes with what is beside it."""
    number = next((found for each in (name, *OTHER_NAMES.get(name, ())) if (found := _version(each))), None)
    if number is None:
        return Finding("package", name, "missing", "", _installs(name))
    if wrong := _mismatch(name, number):
        return Finding("package", name, "broken", wrong.what, wrong.mend)
    if name != "onnxruntime":
        return Finding("package", name, "ok", number)
    providers, reason = ask(ASK_PROVIDERS)
    if providers is None:
        return Finding("package", name, "broken", f"{number}: {reason}", f"pip install --force-reinstall {name}")
    return Finding("package", name, "ok", f"{number} with {', '.join(providers)}", facts={"providers": providers})


def _installs(name: str) -> str:
    if name == "torch-npu":
        return ascend.install_command(_version("torch"))
    if name == "mindspore":
        return "pip install 'ehm[mindspore]' with Python 3.12 at most, in an environment of its own"
    return f"pip install 'ehm[{EXTRAS[name]}]'" if EXTRAS[name] else f"pip install {name}"


def _mismatch(name: str, number: str) -> ascend.Problem | None:
    """What does not go together.

    MindSpore up to 2.10 is built for numpy 1. The metadata of 2.10.0 lets numpy 2 in, and ``Tensor(1.0) * 0.5`` raises.
    """
    if name == "torch-npu":
        return ascend.find_mismatch(ascend.find_software(ROOT))
    if name != "mindspore":
        return None
    numpy = _version("numpy")
    if numpy and int(numpy.partition(".")[0]) >= 2:
        return ascend.Problem(
            f"mindspore {number} goes with numpy below 2, but numpy {numpy} is installed", "pip install 'numpy<2'"
        )
    if sys.version_info >= (3, 13):
        return ascend.Problem(
            f"mindspore {number} goes with Python 3.12 at most, but this is {platform.python_version()}",
            "python3.12 -m venv for an environment of its own",
        )
    return ascend.mindspore_mismatch(number, ascend.find_software(ROOT))


def _found(name: str, number: str | None, where: str = "") -> Finding:
    return Finding("machine", name, "ok" if number else "absent", f"{number}{where}" if number else "")


def nvidia_driver() -> str | None:
    """The version of NVIDIA's kernel module, or what nvidia-smi says of it."""
    try:
        text = (ROOT / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = ""
    if found := re.search(r"Kernel Module.*?\s(\d+(\.\d+)+)\s", text):
        return found[1]
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
