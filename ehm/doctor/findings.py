"""The rows of ``ehm doctor``, and the look-ups that need no framework: machine, drivers, packages, variables."""

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

from ehm.backends import ascend, ascend_releases
from ehm.backends.common import measure_host_memory
from ehm.doctor.child import LATE, ask_child
from ehm.doctor.variables import VARIABLES
from ehm.installation import build_install_command
from ehm.processors import count_available_processors

__all__ = [
    "AGAIN",
    "EXTRAS",
    "Finding",
    "examine_machine",
    "examine_package",
    "find_nvidia_driver",
    "list_variables",
]

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
AGAIN = "a busy machine can be why: run ehm doctor again when it has less to do"
"""The remedy for an answer that did not come in time."""
ROOT = Path("/")
"""The root of the file system, in which drivers are looked up; tests have one of their own."""


@dataclass(frozen=True)
class Finding:
    """One row: ``ok``, ``missing`` (the command ``mend`` installs it), ``absent`` hardware, ``broken``, or ``unknown``.

    The last is for what did not answer in time. ``detail`` has the reason. ``facts`` are for scripts, as plain JSON.
    """

    kind: Literal["machine", "variable", "package", "device"]
    name: str
    state: Literal["ok", "missing", "absent", "broken", "unknown"]
    detail: str
    mend: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def examine_machine() -> Iterator[Finding]:
    """Yield Python, cores, memory, and the drivers of accelerators."""
    yield Finding("machine", "python", "ok", f"{platform.python_version()} on {platform.platform()}")
    usable = count_available_processors()
    present = os.cpu_count()
    cores = str(usable)
    if usable != present:
        cores = f"{usable} of {present}, which is all that this process may use"
    yield Finding("machine", "cores", "ok", cores)
    memory = measure_host_memory()
    yield Finding("machine", "memory", "ok", f"{memory / 2**30:.1f} GiB", facts={"bytes": memory})
    yield _report_software("NVIDIA driver", find_nvidia_driver())
    software = ascend.find_software(ROOT)
    yield _report_software("Ascend driver", software.driver)
    if software.cann and not software.active:
        detail = f"{software.cann} in {software.cann_home}: not active in this shell"
        yield Finding("machine", "CANN", "broken", detail, f"source {software.cann_script}")
    else:
        yield _report_software("CANN", software.cann, f" in {software.cann_home}")
    if software.cann:
        yield _examine_compiler_packages()


def list_variables() -> Iterator[Finding]:
    """Yield the environment variables that are set and change what a device does."""
    for name in VARIABLES:
        if name in os.environ:
            yield Finding("variable", name, "ok", os.environ[name])


def examine_package(name: str) -> Finding:
    """Look a package up in its metadata, and check that it goes with the packages beside it."""
    # The same module comes from packages of several names, of which one is installed.
    installed = _find_version(name)
    for other_name in OTHER_NAMES.get(name, ()):
        installed = installed or _find_version(other_name)
    if installed is None:
        return Finding("package", name, "missing", "", _choose_install_command(name))
    mismatch = _find_mismatch(name, installed)
    if mismatch:
        return Finding("package", name, "broken", mismatch.problem, mismatch.remedy)
    if name != "onnxruntime":
        return Finding("package", name, "ok", installed)
    # Providers are known only to the library, whose import can fail for lack of a driver.
    providers, reason = ask_child(ASK_PROVIDERS)
    if providers is None and reason.startswith(LATE):
        return Finding("package", name, "unknown", f"{installed}: {reason}", AGAIN)
    if providers is None:
        return Finding("package", name, "broken", f"{installed}: {reason}", f"pip install --force-reinstall {name}")
    return Finding("package", name, "ok", f"{installed} with {', '.join(providers)}", facts={"providers": providers})


def find_nvidia_driver() -> str | None:
    """Return the version of NVIDIA's kernel module, from its file or else from nvidia-smi; None without a driver."""
    try:
        text = (ROOT / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = ""
    # The file is read first: nvidia-smi can take seconds, or hang on a faulty GPU.
    found = re.search(r"Kernel Module.*?\s(\d+(\.\d+)+)\s", text)
    if found:
        return found[1]
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)  # one line for each GPU, all the same


def _examine_compiler_packages() -> Finding:
    """Look for the packages that CANN's compiler imports, which fails at the first operator that it has to compile."""
    missing = ascend.list_missing_packages()
    if not missing:
        return Finding("machine", "CANN's packages", "ok", f"all {len(ascend.COMPILER_PACKAGES)} are installed")
    names = ", ".join(missing)
    return Finding(
        "machine", "CANN's packages", "missing", f"its compiler imports {names}", f"pip install {' '.join(missing)}"
    )


def _report_software(name: str, installed: str | None, location: str = "") -> Finding:
    if not installed:
        return Finding("machine", name, "absent", "")
    return Finding("machine", name, "ok", f"{installed}{location}")


def _choose_install_command(name: str) -> str:
    if name == "torch-npu":
        return ascend_releases.build_npu_install_command(_find_version("torch"))
    if name == "mindspore":
        return f"{build_install_command('mindspore')} with Python 3.12 at most, in an environment of its own"
    return build_install_command(EXTRAS[name]) if EXTRAS[name] else f"pip install {name}"


def _find_mismatch(name: str, installed: str) -> ascend.Problem | None:
    """Find out whether a package does not go with Python, with other packages or with CANN."""
    if name == "torch-npu":
        return ascend.find_mismatch(ascend.find_software(ROOT))
    if name != "mindspore":
        return None
    numpy = _find_version("numpy")
    # MindSpore up to 2.10 is built for numpy 1. The metadata of 2.10.0 lets numpy 2 in, and Tensor(1.0) * 0.5 raises.
    if numpy and int(numpy.partition(".")[0]) >= 2:
        return ascend.Problem(
            f"mindspore {installed} goes with numpy below 2, but numpy {numpy} is installed", "pip install 'numpy<2'"
        )
    if sys.version_info >= (3, 13):
        return ascend.Problem(
            f"mindspore {installed} goes with Python 3.12 at most, but this is {platform.python_version()}",
            "python3.12 -m venv for an environment of its own",
        )
    return ascend.find_mindspore_mismatch(installed, ascend.find_software(ROOT))


def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
