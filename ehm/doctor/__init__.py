"""``ehm doctor``: what this machine offers, what is missing, and the command that mends it.

Packages and drivers are looked up in metadata and files, not imported. Devices are asked in child processes
(:mod:`ehm.doctor.child`), all at once, and the reason of one that fails is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from json import dumps

from rich.table import Table
from rich.text import Text

from ehm.console import PlainConsole
from ehm.doctor.devices import device as look_at
from ehm.doctor.devices import known
from ehm.doctor.findings import EXTRAS, Finding, machine, package, variables
from ehm.doctor.operators import operators
from ehm.errors import BackendError

__all__ = ["Finding", "doctor", "examine", "operators"]

STYLES = {"ok": "green", "missing": "yellow", "absent": "dim", "broken": "red"}


def doctor(json: bool = False, device: str = "auto") -> int:
    """Print a table, or JSON, of what was found; 0 when ``device`` can train (``auto``: when any can), else 1.

    Raises BackendError for a device that nobody offers.
    """
    findings = list(examine(device))
    works = any(finding.kind == "device" and finding.state == "ok" for finding in findings)
    if json:
        print(dumps({"device": device, "works": works, "findings": [asdict(found) for found in findings]}, indent=2))
        return 0 if works else 1
    table = Table("", "", "", "to mend it", title="ehm doctor")
    for found in findings:
        state = Text(found.state, style=STYLES[found.state])
        table.add_row(found.name, state, found.detail, found.mend, end_section=_last(found, findings))
    console = PlainConsole(soft_wrap=False)
    console.print(table)
    if not works and device == "auto":
        advice = "pip install 'ehm[torch]' is what most machines need, or 'ehm[mindspore]' where there is no torch."
        console.print(f"No device can train here. {advice}")
    elif not works:
        console.print(f"--device {device} cannot train here.")
    return 0 if works else 1


def examine(device: str = "auto") -> Iterator[Finding]:
    """The machine, the variables that are set, the packages, then the devices of ``--device``, or the one named."""
    offered, problem = known()
    if device == "auto":
        wanted = offered
    elif (kind := device.partition(":")[0]) in offered:
        wanted = {device: offered[kind]}
    else:
        raise BackendError(f"--device {device}: unknown; known are auto, {', '.join(offered)}")
    with ThreadPoolExecutor() as pool:
        devices = [pool.submit(look_at, name, served) for name, served in wanted.items()]
        packages = [pool.submit(package, name) for name in EXTRAS]
        yield from machine()
        yield from variables()
        yield Finding("package", "ehm", "ok", version("ehm"))
        yield from (found.result() for found in packages)
        yield from (found.result() for found in devices)
    if problem:
        yield Finding("device", "other packages", "broken", problem)


def _last(finding: Finding, findings: list[Finding]) -> bool:
    return finding is [other for other in findings if other.kind == finding.kind][-1]
