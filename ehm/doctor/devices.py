"""The devices of ``--device``, each asked in a child process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from ehm import backends
from ehm.backends import ascend
from ehm.doctor.attention import TOLERANCE, measure_attention
from ehm.doctor.child import LATE, ask_child
from ehm.doctor.findings import AGAIN, ROOT, Finding, find_nvidia_driver
from ehm.errors import BackendError
from ehm.installation import build_install_command

__all__ = ["describe_device", "examine_device", "list_known_devices"]

PATIENCE = {"npu": 600, "mindspore": 600}
"""Seconds for devices that start slowly: CANN starts up, and MindSpore compiles three graphs. Others have the usual."""

_NOTABLE_SECONDS = 0.5
"""Kernels that are loaded at a first pass take less."""

ASK_DEVICE = """
import json, sys
from ehm.doctor.devices import describe_device
from ehm.errors import BackendError
try:
    print(json.dumps(describe_device(sys.argv[1])))
except BackendError as error:
    sys.exit(str(error))
"""
"""Prints the result of :func:`describe_device`."""


def list_known_devices() -> tuple[dict[str, str], str]:
    """List the devices and the functions behind them.

    Also returns why the devices of other packages are not among them, empty if they are.
    """
    try:
        return backends.list_devices(), ""
    except BackendError as error:
        return backends.DEVICES, str(error)


def describe_device(name: str) -> dict[str, Any]:
    """Describe a device, the error of its attention and the seconds of compiling it in each precision, as plain JSON.

    It is called in a child process.
    """
    backend = backends.get(name)
    info = backend.describe_device()
    measurements = {dtype: measure_attention(backend, dtype) for dtype in info.dtypes}
    return {
        **asdict(info),
        "attention": {dtype: found.error for dtype, found in measurements.items()},
        "compile_seconds": {dtype: found.compile_seconds for dtype, found in measurements.items()},
    }


def examine_device(name: str, provider: str) -> Finding:
    """Examine the device ``name``, whose backend the function ``provider`` makes."""
    kind = name.partition(":")[0]
    if kind in backends.DEVICES:
        framework = backends.find_framework(kind)
        if find_spec(framework) is None:
            return Finding("device", name, "missing", f"{framework} is not installed", build_install_command(framework))
    # In a child: a driver that does not match can end the process that asks for the device.
    facts, reason = ask_child(ASK_DEVICE, name, patience=PATIENCE.get(kind))
    if facts is None:
        if reason.startswith(LATE):
            return Finding("device", name, "unknown", reason, AGAIN)
        # Errors that begin with the flag are the backend's own: there is no such device. Others are crashes.
        if not reason.startswith("--device"):
            return Finding("device", name, "broken", reason)
        return Finding("device", name, "absent", *_explain_absence(kind, reason.partition(": ")[2]))
    facts["works"], attention = _judge_attention(facts["attention"])
    detail = _describe_facts(facts)
    if kind not in backends.DEVICES:
        detail += f"; by {provider}"
    detail += attention + _describe_compiling(facts["compile_seconds"])
    return Finding("device", name, "ok" if facts["works"] else "broken", detail, facts=facts)


def _describe_facts(facts: Mapping[str, Any]) -> str:
    number = f"{facts['count']} x " if facts["count"] > 1 else ""
    memory = f", {facts['memory_bytes'] / 2**30:.1f} GiB" if facts["memory_bytes"] else ""
    versions = ", ".join(f"{package} {installed}" for package, installed in facts["versions"].items())
    return f"{number}{facts['description']}{memory}; {', '.join(facts['dtypes'])}; {versions}"


def _judge_attention(errors: Mapping[str, float | None]) -> tuple[bool, str]:
    """Return whether the attention of a device is right in every precision, and a sentence about it."""
    wrong = []
    for dtype, error in errors.items():
        if error is None:
            wrong.append(f"NaN in {dtype}")
        elif error > TOLERANCE:
            wrong.append(f"{error:.2g} in {dtype}")
    if wrong:
        return False, f"; attention is wrong: off by {', '.join(wrong)}, where rounding stays below {TOLERANCE}"
    return True, f"; attention right within {max(filter(None, errors.values())):.1g}"


def _describe_compiling(seconds: Mapping[str, float]) -> str:
    """Return a sentence about the time that a first pass takes to compile, if it is worth one."""
    longest = max(seconds.values())
    if longest < _NOTABLE_SECONDS:
        return ""
    return f"; a graph of two blocks compiles in {longest:.1f} s, and larger ones take longer"


def _explain_absence(kind: str, reason: str) -> tuple[str, str]:
    """Return why a device is absent, and the way to fix it if one is known."""
    if kind == "npu":
        # The files tell a cause and its remedy apart, which the error has in one sentence.
        problem = ascend.find_problem(ascend.find_software(ROOT))
        if problem and str(problem) in reason:
            return problem
    # Wheels of torch for CPUs alone have this suffix.
    if kind == "cuda" and _find_torch_version().endswith("+cpu"):
        return reason, "install a torch that is built with CUDA: this one is not"
    if kind == "cuda" and find_nvidia_driver() is None:
        return reason, "install NVIDIA's driver; a container needs --gpus all"
    return reason, ""


def _find_torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""
