"""Releases of torch, torch-npu, MindSpore and CANN that go together, as their makers have published it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ehm.installation import build_install_command

__all__ = [
    "MINDSPORE",
    "NEWEST",
    "PAIRS",
    "Pair",
    "build_npu_install_command",
    "find_pair",
    "is_release",
    "parse_release",
]


@dataclass(frozen=True)
class Pair:
    """A release of torch-npu, and the torch and the CANN that were published to go with it."""

    torch_npu: str
    torch: str
    cann: str

    def __str__(self) -> str:
        return f"torch-npu {self.torch_npu}, torch {self.torch} and CANN {self.cann}"


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
"""The table of Ascend/pytorch (COMPATIBILITY.en.md, commit 9e73e708, 2026-08-21) from torch 2.6, ehm's oldest.

Of each release of torch the newest torch-npu comes first. 2.12.0.post2 is that of Ascend's images (Ascend/pytorch,
docker/supported_tags.md, TorchNPU 26.1.1).
"""
NEWEST = PAIRS[0]
"""The pair that is installed beside nothing else."""

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


def find_pair(torch_npu: str) -> Pair | None:
    """Return the published pair of a release of torch-npu; of a later .postN the last one before, else None."""
    release = parse_release(torch_npu)
    number = _parse_post_number(torch_npu)
    for pair in PAIRS:
        if pair.torch == release and _parse_post_number(pair.torch_npu) <= number:
            return pair
    return None


def build_npu_install_command(torch: str | None = None) -> str:
    """Return the command that installs torch-npu beside ``torch``, or the newest documented pair if it has none."""
    chosen = NEWEST
    reason = ""
    if torch is not None:
        fitting = [pair for pair in PAIRS if pair.torch == parse_release(torch)]
        if fitting:
            chosen = fitting[0]  # the newest comes first
        else:
            reason = f" (no pair is published for torch {torch})"
    command = f"{build_install_command('npu')} torch=={chosen.torch} torch-npu=={chosen.torch_npu}"
    return f"{command}, which go with CANN {chosen.cann}{reason}"


def is_release(cann: str, wanted: str) -> bool:
    """Return whether a CANN is the release that is wanted, or a build of it: 9.1.0-beta.3 is 9.1.0."""
    return cann.upper().startswith(wanted.upper())


def parse_release(number: str) -> str:
    """Return the release that a version is a build of: ``2.12.0`` for ``2.12.0.post3`` and ``2.12.0+cpu``."""
    without_build = number.partition("+")[0]
    return ".".join(without_build.split(".")[:3]).partition("rc")[0]


def _parse_post_number(number: str) -> int:
    """Return the number of a post-release, 0 of any other: 2 for ``2.7.1.post2`` and ``2.7.1.post2.dev20250724``."""
    match = re.search(r"\.post(\d+)", number)
    return int(match[1]) if match else 0
