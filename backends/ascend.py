"""The software that torch needs to see an Ascend NPU (driver, CANN, torch-npu): find it, and what is wrong with it.

For MindSpore, this covers only the CANN that goes with it. Everything is read from files and from the metadata of
packages: nothing is imported, and nothing of the vendor's runs. :mod:`ehm.backends.ascend_releases` has the releases
that go together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from ehm.backends.ascend_releases import (
    MINDSPORE,
    NEWEST,
    PAIRS,
    build_npu_install_command,
    find_pair,
    is_release,
    parse_release,
)
from ehm.errors import take_first_line

__all__ = [
    "COMPILER_PACKAGES",
    "Installation",
    "Problem",
    "explain_absence",
    "find_mindspore_mismatch",
    "find_mismatch",
    "find_problem",
    "find_software",
    "list_missing_packages",
]


COMPILER_PACKAGES = (
    "absl-py",
    "attrs",
    "cffi",
    "cloudpickle",
    "decorator",
    "numpy",
    "protobuf",
    "psutil",
    "PyYAML",
    "requests",
    "scipy",
    "sympy",
)
"""Packages that CANN's compiler of operators imports (tbe), by their names on PyPI; CANN does not bring them along.

Read from Ascend's images: the Dockerfile of cann:9.0.0 and 9.1.0-beta.3 in Ascend/cann-container-image installs them,
that of 8.5.0 does not, and that of Ascend/pytorch does. Without decorator, ONNX Runtime's CANN provider was seen to
fail when it compiles (microsoft/onnxruntime issue 14121); torch-npu ends in EH9999 or EZ9999 (Ascend/pytorch issue 7).
"""

_HOMES = ("usr/local/Ascend/cann", "usr/local/Ascend/ascend-toolkit/latest")
"""Folders that CANN installs itself in: since 8.5, and before."""


@dataclass(frozen=True)
class Installation:
    """The software that was found; None for what is missing. ``cann_home`` is CANN's folder.

    ``active`` says whether this process was started with CANN's environment; ``nodes`` are the NPUs that it may open,
    ``hidden`` those that it may not; ``visible`` is ASCEND_RT_VISIBLE_DEVICES.
    """

    torch: str | None = None
    torch_npu: str | None = None
    cann: str | None = None
    cann_home: Path | None = None
    active: bool = False
    driver: str | None = None
    nodes: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    visible: str | None = None

    @property
    def cann_script(self) -> str:
        """The script that makes CANN known to a shell."""
        home = self.cann_home or Path("/", _HOMES[0])
        for script in (home / "set_env.sh", home.parent / "set_env.sh"):
            if script.exists():
                return str(script)
        return str(home)


class Problem(NamedTuple):
    """A problem, and the command or the step that fixes it."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}"


def find_software(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Installation:
    """Look for the software of an NPU below ``root``, the root of the file system."""
    named = [environ[name] for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME") if environ.get(name)]
    cann = None
    cann_home = None
    for home in (*map(Path, named), *(root / home for home in _HOMES)):
        cann = _read_cann_version(home)
        if cann is not None:
            cann_home = home
            break
    nodes = []
    hidden = []
    for node in sorted(map(str, (root / "dev").glob("davinci[0-9]*"))):
        if os.access(node, os.R_OK | os.W_OK):
            nodes.append(node)
        else:
            hidden.append(node)
    return Installation(
        torch=_read_package_version("torch"),
        torch_npu=_read_package_version("torch-npu"),
        cann=cann,
        cann_home=cann_home,
        active=bool(named),
        driver=_read_value(root / "usr/local/Ascend/driver/version.info", "version"),
        nodes=tuple(nodes),
        hidden=tuple(hidden),
        visible=environ.get("ASCEND_RT_VISIBLE_DEVICES"),
    )


def find_mismatch(found: Installation) -> Problem | None:
    """Find installed versions that do not go together; None if they do, as far as is published."""
    if found.torch_npu is None:
        return None
    pair = find_pair(found.torch_npu)
    # builds such as 2.12.0+cpu are of the same release
    if found.torch is None or parse_release(found.torch) != parse_release(found.torch_npu):
        wanted = parse_release(found.torch_npu)
        if pair is not None:
            wanted = pair.torch
        have = "torch is not installed"
        if found.torch:
            have = f"torch {found.torch} is installed"
        return Problem(
            f"torch-npu {found.torch_npu} goes with torch {wanted}, but {have}", f"pip install torch=={wanted}"
        )
    # a release that is not in the table may still go together
    if pair and found.cann and not is_release(found.cann, pair.cann):
        problem = f"{pair} go together, but CANN {found.cann} is installed in {found.cann_home}"
        # another torch-npu is installed faster than another CANN
        for other in PAIRS:
            if other.torch == pair.torch and is_release(found.cann, other.cann):
                return Problem(problem, f"pip install torch-npu=={other.torch_npu}")
        return Problem(problem, f"install CANN {pair.cann}")
    return None


def find_mindspore_mismatch(mindspore: str, found: Installation) -> Problem | None:
    """Find out whether another CANN is installed than goes with a release of MindSpore; None if not, or not known."""
    wanted = MINDSPORE.get(parse_release(mindspore))
    if wanted is None or found.cann is None or is_release(found.cann, wanted):
        return None
    return Problem(
        f"mindspore {mindspore} goes with CANN {wanted}, but CANN {found.cann} is installed in {found.cann_home}",
        f"install CANN {wanted}",
    )


def find_problem(found: Installation) -> Problem | None:
    """Find the first thing that keeps torch from seeing an NPU, as far as files tell; None if all is there."""
    if found.torch_npu is None:
        return Problem("torch-npu is not installed", build_npu_install_command(found.torch))
    if wrong := find_mismatch(found):
        return wrong
    if found.cann is None:
        pair = find_pair(found.torch_npu)
        wanted = f"is not among the published pairs, which end at {NEWEST}"
        if pair is not None:
            wanted = f"goes with CANN {pair.cann}"
        return Problem(
            f"CANN is not found in ASCEND_HOME_PATH or /usr/local/Ascend (torch-npu {found.torch_npu} {wanted})",
            "install CANN's toolkit and the operators for the NPU, and source its set_env.sh",
        )
    if not found.active:
        return Problem(
            f"CANN {found.cann} in {found.cann_home} is not active in this shell", f"source {found.cann_script}"
        )
    if found.driver is None:
        return Problem(
            "the Ascend driver is not found in /usr/local/Ascend/driver",
            "install it on the host, and mount lib64 and version.info of that folder in a container",
        )
    if found.hidden and not found.nodes:
        return Problem(
            f"{found.hidden[0]} may not be opened by this user", "make the user a member of the group HwHiAiUser"
        )
    if not found.nodes:
        return Problem(
            f"driver {found.driver} is there, but no NPU (/dev/davinci0)",
            "npu-smi info shows those of the host; a container needs --device /dev/davinci0 "
            "--device /dev/davinci_manager --device /dev/devmm_svm --device /dev/hisi_hdc",
        )
    return None


def list_missing_packages() -> list[str]:
    """Return those of ``COMPILER_PACKAGES`` that this Python does not have."""
    return [name for name in COMPILER_PACKAGES if _read_package_version(name) is None]


def explain_absence(error: BaseException | None = None, found: Installation | None = None) -> str:
    """Explain in one sentence why torch sees no NPU here, and how to fix it.

    Call this only after ``import torch_npu`` has failed (with ``error``), or has worked and shown no device: files
    alone do not prove that an NPU is missing.
    """
    found = found or find_software()
    if wrong := find_problem(found):
        return str(wrong)
    known = f"torch-npu {found.torch_npu}, CANN {found.cann} and driver {found.driver} are there and"
    if error is not None:
        # the first line names the cause, and a stack follows
        return f"{known} seem to go together, but importing torch_npu fails: {take_first_line(error)}"
    if found.visible is not None:
        return f"{known} show no NPU: ASCEND_RT_VISIBLE_DEVICES={found.visible} may hide it"
    return f"{known} show no NPU: npu-smi info says whether the driver sees one"


def _read_cann_version(home: Path) -> str | None:
    """Return the version of the CANN that is installed in ``home``, None without one."""
    # the toolkit's own file first: those of other packages may have other versions
    for pattern in ("*/ascend_toolkit_install.info", "ascend_toolkit_install.info", "*/ascend_*_install.info"):
        for file in sorted(home.glob(pattern)):
            if number := _read_value(file, "version"):
                return number
    return None


def _read_value(file: Path, key: str) -> str | None:
    """Return the value of a ``key=value`` line, whose key may begin with a capital; None without a value."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition("=")
        if name.strip().lower() == key:
            return value.strip() or None
    return None


def _read_package_version(name: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
