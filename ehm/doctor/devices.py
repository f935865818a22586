"""The devices of ``--device``, each asked in a child process of its own."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from ehm import backends
from ehm.backends import ascend
from ehm.doctor.attention import TOLERANCE, compare
from ehm.doctor.child import ask
from ehm.doctor.findings import ROOT, Finding, nvidia_driver
from ehm.errors import BackendError

__all__ = ["answer", "device", "known"]

ASK_DEVICE = """
import json, sys
from ehm.doctor.devices import answer
from ehm.errors import BackendError
try:
    print(json.dumps(answer(sys.argv[1])))
except BackendError as error:
    sys.exit(str(error))
"""
"""Prints what :func:`answer` gives."""


def known() -> tuple[dict[str, str], str]:
    """The devices and the functions behind them, and why those of other packages are not among them."""
    try:
        return backends.list_devices(), ""
    except BackendError as error:
        return backends.DEVICES, str(error)


def answer(name: str) -> dict[str, Any]:
    """What a device offers, and how far off its attention is: plain JSON, to be called in a child."""
    backend = backends.get(name)
    info = backend.describe_device()
    return {**asdict(info), "attention": {dtype: compare(backend, dtype) for dtype in info.dtypes}}


def device(name: str, served: str) -> Finding:
    """What is found where ``--device name`` points, a device that the function ``served`` makes."""
    kind = name.partition(":")[0]
    if kind in backends.DEVICES and find_spec(framework := backends.framework_of(kind)) is None:
        return Finding("device", name, "missing", f"{framework} is not installed", f"pip install 'ehm[{framework}]'")
    said, reason = ask(ASK_DEVICE, name)
    if said is None:
        if not reason.startswith("--device"):
            return Finding("device", name, "broken", reason)
        return Finding("device", name, "absent", *_mended(kind, reason.partition(": ")[2]))
    memory = f", {said['memory_bytes'] / 2**30:.1f} GiB" if said["memory_bytes"] else ""
    versions = ", ".join(f"{package} {number}" for package, number in said["versions"].items())
    many = f"{said['count']} x " if said["count"] > 1 else ""
    detail = f"{many}{said['description']}{memory}; {', '.join(said['dtypes'])}; {versions}"
    if kind not in backends.DEVICES:
        detail += f"; by {served}"
    said["works"], attention = _judged(said)
    return Finding("device", name, "ok" if said["works"] else "broken", detail + attention, facts=said)


def _judged(said: dict[str, Any]) -> tuple[bool, str]:
    """Whether a device's attention is right, and what to say of it."""
    differences: dict[str, float | None] = said["attention"]
    wrong = {dtype: found for dtype, found in differences.items() if found is None or found > TOLERANCE}
    if not wrong:
        return True, f"; attention right within {max(filter(None, differences.values())):.1g}"
    shown = ", ".join(f"{'NaN' if found is None else f'{found:.2g}'} in {dtype}" for dtype, found in wrong.items())
    return False, f"; attention is wrong: off by {shown}, where rounding stays below {TOLERANCE}"


def _mended(kind: str, reason: str) -> tuple[str, str]:
    """Why a device is absent, and what mends it, where that is known."""
    if kind == "npu":
        wrong = ascend.find_problem(ascend.find_software(ROOT))
        return wrong if wrong and str(wrong) in reason else (reason, "")
    if kind == "cuda" and _torch().endswith("+cpu"):
        return reason, "install a torch that is built with CUDA: this one is not"
    if kind == "cuda" and nvidia_driver() is None:
        return reason, "install NVIDIA's driver; a container needs --gpus all"
    return reason, ""


def _torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""
