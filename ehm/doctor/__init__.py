"""``ehm doctor``: what this machine offers, what is missing, and the command that fixes it.

Packages and drivers are looked up in metadata and files, not imported. Devices are asked in child processes
(:mod:`ehm.doctor.child`), all at once, and the reason of one that fails is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from json import dumps

from rich.table import Table
from rich.text import Text

from ehm.console import PlainConsole
from ehm.doctor.devices import examine_device, list_known_devices
from ehm.doctor.findings import AGAIN, EXTRAS, Finding, examine_machine, examine_package, list_variables
from ehm.doctor.operators import report_operators
from ehm.errors import BackendError
from ehm.installation import build_install_command, describe_version
from ehm.suggestions import suggest

__all__ = ["Finding", "collect_findings", "doctor"]

STYLES = {"ok": "green", "missing": "yellow", "absent": "dim", "broken": "red", "unknown": "yellow"}


def doctor(device: str = "auto", operators: bool | str = False, json: bool = False) -> int:
    """Print a table, or JSON, of what was found; return 0 if ``device`` can train (``auto``: if any can), else 1.

    With ``operators`` it prints the operators instead: all that ehm runs, those of a part of it, or those of the
    network that MODULE:FUNCTION returns; and it returns 0 if an NPU has all of them. Raises BackendError for an
    unknown device, ConfigError for an unknown part or function.
    """
    if operators:
        return report_operators(device, json, "" if operators is True else operators)
    findings = list(collect_findings(device))
    works = any(finding.kind == "device" and finding.state == "ok" for finding in findings)
    status = 0 if works else 1
    if json:
        rows = [asdict(finding) for finding in findings]
        print(dumps({"device": device, "works": works, "findings": rows}, indent=2))
        return status
    table = Table("", "", "", "to fix it", title="ehm doctor")
    for finding, following in zip(findings, [*findings[1:], None], strict=True):
        state = Text(finding.state, style=STYLES[finding.state])
        is_last_of_kind = following is None or following.kind != finding.kind
        table.add_row(finding.name, state, finding.detail, finding.mend, end_section=is_last_of_kind)
    console = PlainConsole(soft_wrap=False)
    console.print(table)
    if not works:
        # a command that is broken into lines cannot be copied
        console.print(_describe_failure(device, findings), soft_wrap=True)
    return status


def _describe_failure(device: str, findings: Sequence[Finding]) -> str:
    """Return a sentence for a machine, or a ``device``, that cannot train."""
    late = _list_devices(findings, "unknown")
    if device != "auto" and not late:
        return f"--device {device} cannot train here."
    if late:
        return f"It is not known if {' or '.join(late)} can train here: there was no answer in time; {AGAIN}."
    # an installed framework whose device fails is not fixed by installing it again
    broken = _list_devices(findings, "broken")
    if broken:
        return f"No device can train here; the table says what is wrong with {', '.join(broken)}."
    return (
        f"No device can train here. Most machines need {build_install_command('torch')}; an environment without torch "
        f"needs {build_install_command('mindspore')}."
    )


def _list_devices(findings: Sequence[Finding], state: str) -> list[str]:
    """Return the names of the devices in a ``state``."""
    return [finding.name for finding in findings if finding.kind == "device" and finding.state == state]


def collect_findings(device: str = "auto") -> Iterator[Finding]:
    """Yield the machine, the variables that are set, the packages, then all devices or the one that is named."""
    offered, problem = list_known_devices()
    kind = device.partition(":")[0]
    if device == "auto":
        wanted = offered
    elif kind in offered:
        wanted = {device: offered[kind]}
    else:
        raise BackendError(f"--device {device}: unknown; known are auto, {', '.join(offered)}{suggest(kind, offered)}")
    # Each question waits for a child process, so threads are enough to ask all of them at once.
    with ThreadPoolExecutor() as pool:
        # Devices first: importing a framework takes the longest.
        devices = [pool.submit(examine_device, name, provider) for name, provider in wanted.items()]
        packages = [pool.submit(examine_package, name) for name in EXTRAS]
        yield from examine_machine()
        yield from list_variables()
        yield Finding("package", "ehm", "ok", describe_version())
        yield from (package.result() for package in packages)
        yield from (each.result() for each in devices)
    if problem:
        yield Finding("device", "other packages", "broken", problem)
