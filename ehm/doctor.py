"""``ehm doctor``: what this machine offers, what is missing, and the command that mends it.

Packages are looked up in their metadata, not imported. Devices are asked in child processes: a framework that crashes
or hangs while it is imported takes only its own row with it, and the reason is shown.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from json import dumps, loads
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ehm.backends import DEVICES

__all__ = ["Finding", "doctor", "examine"]

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

ASK_DEVICE = """
import dataclasses, json, sys
from ehm.backends import get
from ehm.errors import BackendError
try:
    info = get(sys.argv[1]).info()
except BackendError as error:
    sys.exit(str(error))
print(json.dumps(dataclasses.asdict(info)))
"""
ASK_PROVIDERS = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
PATIENCE = 120  # seconds for a child: importing a framework from a cold disk takes tens


@dataclass(frozen=True)
class Finding:
    """One row: ``ok``, ``missing`` (``mend`` gets it), ``absent`` hardware, or ``broken`` with the reason."""

    kind: Literal["machine", "package", "device"]
    name: str
    state: Literal["ok", "missing", "absent", "broken"]
    detail: str
    mend: str = ""


def doctor(json: bool = False) -> int:
    """Print a table, or JSON, of what was found; 0 when a device can train, else 1."""
    findings = list(examine())
    works = any(finding.kind == "device" and finding.state == "ok" for finding in findings)
    if json:
        print(dumps({"works": works, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return 0 if works else 1
    table = Table("", "", "", "to mend it", title="ehm doctor")
    styles = {"ok": "green", "missing": "yellow", "absent": "dim", "broken": "red"}
    for finding in findings:
        state = Text(finding.state, style=styles[finding.state])
        # Text and not str, in which rich would take the [torch] of a command for a style.
        table.add_row(
            finding.name, state, Text(finding.detail), Text(finding.mend), end_section=_last(finding, findings)
        )
    console = Console()
    console.print(table)
    if not works:
        console.print("No device can train here. pip install 'ehm[torch]' is what most machines need.", markup=False)
    return 0 if works else 1


def examine() -> Iterator[Finding]:
    """The machine, then the packages, then the devices of ``--device``."""
    yield Finding("machine", "python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("machine", "cores", "ok", str(os.cpu_count()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("machine", "memory", "ok", f"{memory / 2**30:.1f} GiB")
    yield Finding("package", "ehm", "ok", version("ehm"))
    for package, extra in EXTRAS.items():
        yield _package(package, extra)
    with ThreadPoolExecutor() as pool:
        yield from pool.map(_device, DEVICES)


def _package(name: str, extra: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(
            "package", name, "missing", "", f"pip install 'ehm[{extra}]'" if extra else f"pip install {name}"
        )
    if name != "onnxruntime":
        return Finding("package", name, "ok", found)
    providers, reason = _ask(ASK_PROVIDERS)
    if providers is None:
        return Finding("package", name, "broken", f"{found}: {reason}", f"pip install --force-reinstall {name}")
    return Finding("package", name, "ok", f"{found} with {', '.join(providers)}")


def _device(name: str) -> Finding:
    framework = DEVICES[name].rpartition(".")[2]
    if find_spec(framework) is None:
        return Finding("device", name, "missing", f"{framework} is not installed", f"pip install 'ehm[{framework}]'")
    info, reason = _ask(ASK_DEVICE, name)
    if info is None:
        return Finding("device", name, "absent" if reason.startswith("--device") else "broken", reason)
    memory = f", {info['memory_bytes'] / 2**30:.1f} GiB" if info["memory_bytes"] else ""
    versions = ", ".join(f"{package} {number}" for package, number in info["versions"].items())
    many = f"{info['count']} x " if info["count"] > 1 else ""
    detail = f"{many}{info['description']}{memory}; {', '.join(info['dtypes'])}; {versions}"
    return Finding("device", name, "ok", detail)


def _ask(code: str, *arguments: str) -> tuple[Any, str]:
    """Run ``code`` in a child; the JSON that it prints last, or None and the reason."""
    # Without the guard, importing torch also imports every vendor's plug-in that is installed, wanted or not.
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {PATIENCE} seconds"
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or [f"ended by signal or status {done.returncode}"])[-1]
    return loads(done.stdout.splitlines()[-1]), ""


def _last(finding: Finding, findings: list[Finding]) -> bool:
    return finding is [other for other in findings if other.kind == finding.kind][-1]
