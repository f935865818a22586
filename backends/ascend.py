"""The software that torch needs to see an Ascend NPU (driver, CANN, torch-npu), and which versions go together.

For MindSpore, this covers only the CANN that goes with it. Everything is read from files and from the metadata of
packages: nothing is imported, and nothing of the vendor's runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from ehm.installation import build_install_command

__all__ = [
    "COMPILER_PACKAGES",
    "MINDSPORE",
    "NEWEST",
    "PAIRS",
    "SOURCE",
    "Installation",
    "Pair",
    "Problem",
    "build_npu_install_command",
    "explain_absence",
    "find_mindspore_mismatch",
    "find_mismatch",
    "find_pair",
    "find_problem",
    "find_software",
    "list_missing_packages",
]


@dataclass(frozen=True)
class Pair:
    """A release of torch-npu, and the torch and the CANN that were published to go with it."""

    torch_npu: str
    torch: str
    cann: str

    def __str__(self) -> str:
        return f"torch-npu {self.torch_npu}, torch {self.torch} and CANN {self.cann}"


SOURCE = "COMPATIBILITY.en.md of Ascend/pytorch, commit 9e73e708, 2026-08-21"
PAIRS = (
    Pair("2.12.0.post2", "2.12.0", "9.1.0"),
    Pair("2.12.0", "2.12.0", "9.1.0"),
    Pair("2.11.0", "2.11.0", "9.1.0"),
    Pair("2.10.0.post4", "2.10.0", "9.1.0"),
    Pair("2.9.0.post6", "2.9.0", "9.1.0"),
    Pair("2.9.0.post2", "2.9.0", "9.0.0"),
    Pair("2.9.0", "2.9.0", "8.5.0"),
    Pair("2.8.0.post4", "2.8.0", "9.0.0"),
    Pair("2.8.0.post2", "2.8.0", "8.5.0"),
    Pair("2.8.0", "2.8.0", "8.3.RC1"),
    Pair("2.7.1.post8", "2.7.1", "9.1.0"),
    Pair("2.7.1.post4", "2.7.1", "9.0.0"),
    Pair("2.7.1.post2", "2.7.1", "8.5.0"),
    Pair("2.7.1", "2.7.1", "8.3.RC1"),
    Pair("2.6.0.post5", "2.6.0", "8.5.0"),
    Pair("2.6.0.post3", "2.6.0", "8.3.RC1"),
    Pair("2.6.0", "2.6.0", "8.2.RC1"),
)
"""The published table (SOURCE) from torch 2.6, the oldest that ehm takes.

2.12.0.post2 is that of Ascend's images (Ascend/pytorch, docker/supported_tags.md, TorchNPU 26.1.1).
"""
NEWEST = PAIRS[0]

MINDSPORE = {
    "2.10.0": "9.1.0",
    "2.9.0": "9.0.0",
    "2.7.2": "8.5.0",
    "2.7.1": "8.3.RC1",
    "2.7.0": "8.2.RC1",
}
"""Releases of MindSpore, and the CANN that MindSpore Transformers runs each with.

2.10.0 by the tag of its image (docs/mindformers of mindspore-ai/docs, r2.10.0), 2.9.0 by the installation guide of its
release 1.9.0, the others by VERSION_MAP.json of mindspore-ai/mindformers, commit 167a50de, 2026-07-24. 2.8.0 is on
PyPI, but none of these names its CANN.
"""

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


def find_pair(torch_npu: str) -> Pair | None:
    """Return the published pair of a release of torch-npu; of a later .postN the last one before, else None."""
    release = _parse_release(torch_npu)
    number = _parse_post_number(torch_npu)
    for pair in PAIRS:
        if pair.torch == release and _parse_post_number(pair.torch_npu) <= number:
            return pair
    return None


def find_mismatch(found: Installation) -> Problem | None:
    """Find installed versions that do not go together; None if they do, as far as is published."""
    if found.torch_npu is None:
        return None
    pair = find_pair(found.torch_npu)
    # builds such as 2.12.0+cpu are of the same release
    if found.torch is None or _parse_release(found.torch) != _parse_release(found.torch_npu):
        wanted = _parse_release(found.torch_npu)
        if pair is not None:
            wanted = pair.torch
        have = "torch is not installed"
        if found.torch:
            have = f"torch {found.torch} is installed"
        return Problem(
            f"torch-npu {found.torch_npu} goes with torch {wanted}, but {have}", f"pip install torch=={wanted}"
        )
    # a release that is not in the table may still go together
    if pair and found.cann and not _is_release(found.cann, pair.cann):
        problem = f"{pair} go together, but CANN {found.cann} is installed in {found.cann_home}"
        # another torch-npu is installed faster than another CANN
        for other in PAIRS:
            if other.torch == pair.torch and _is_release(found.cann, other.cann):
                return Problem(problem, f"pip install torch-npu=={other.torch_npu}")
        return Problem(problem, f"install CANN {pair.cann}")
    return None


def find_mindspore_mismatch(mindspore: str, found: Installation) -> Problem | None:
    """Find out whether another CANN is installed than goes with a release of MindSpore; None if not, or not known."""
    wanted = MINDSPORE.get(_parse_release(mindspore))
    if wanted is None or found.cann is None or _is_release(found.cann, wanted):
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


def explain_absence(error: BaseException | str | None = None, found: Installation | None = None) -> str:
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
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        return f"{known} seem to go together, but importing torch_npu fails: {reason}"
    if found.visible is not None:
        return f"{known} show no NPU: ASCEND_RT_VISIBLE_DEVICES={found.visible} may hide it"
    return f"{known} show no NPU: npu-smi info says whether the driver sees one"


def build_npu_install_command(torch: str | None = None) -> str:
    """Return the command that installs torch-npu beside ``torch``, or the newest documented pair if it has none."""
    chosen = NEWEST
    reason = ""
    if torch is not None:
        fitting = [pair for pair in PAIRS if pair.torch == _parse_release(torch)]
        if fitting:
            chosen = fitting[0]  # the newest comes first
        else:
            reason = f" (no pair is published for torch {torch})"
    command = f"{build_install_command('npu')} torch=={chosen.torch} torch-npu=={chosen.torch_npu}"
    return f"{command}, which go with CANN {chosen.cann}{reason}"


def _is_release(cann: str, wanted: str) -> bool:
    """Return whether a CANN is the release that is wanted, or a build of it: 9.1.0-beta.3 is 9.1.0."""
    return cann.upper().startswith(wanted.upper())


def _read_cann_version(home: Path) -> str | None:
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
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _parse_release(number: str) -> str:
    """Return the release that a version is a build of: ``2.12.0`` for ``2.12.0.post3`` and ``2.12.0+cpu``."""
    without_build = number.partition("+")[0]
    return ".".join(without_build.split(".")[:3]).partition("rc")[0]


def _parse_post_number(number: str) -> int:
    """Return the number of a post-release, 0 of any other: 2 for ``2.7.1.post2`` and ``2.7.1.post2.dev20250724``."""
    match = re.search(r"\.post(\d+)", number)
    return int(match[1]) if match else 0
