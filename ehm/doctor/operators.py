"""``ehm doctor --operators``: every operator that ehm, or a network of the user's, runs, and whether an NPU has it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from json import dumps
from typing import Any

from rich.table import Table
from rich.text import Text

from ehm import backends
from ehm.console import PlainConsole
from ehm.doctor.child import ask_child
from ehm.errors import BackendError, ConfigError
from ehm.installation import build_install_command
from ehm.progress_bar import create_progress

__all__ = ["report_operators"]

ASK_OPERATORS = """
import sys
try:
    from ehm.backends.torch.diagnosis.report import print_report
except ImportError as error:
    sys.exit(str(error))
print_report(sys.argv[1], sys.argv[2])
"""
PATIENCE = 1800
"""Seconds for several hundred tiny steps, in which each operator is looked at: a minute or two on one quick core."""
VERDICTS = {
    "falls back": ("red", "falling back to the CPU"),
    "no float64": ("red", "computed in float32 instead of float64"),
    "aicpu": ("yellow", "on AICPU, the NPU's slow processor"),
    "synchronises": ("yellow", "that the host waits for"),
    "not documented": ("cyan", "with a kernel that is not documented"),
    "native": ("green", "native"),
    "neutral": ("green", "composed of others"),
}
"""The verdicts, the worst first, each with its colour and its words in the summary."""
FAILING = ("falls back", "no float64")
"""Verdicts that are a failure."""
GOOD = ("native", "neutral")


def report_operators(device: str = "auto", json: bool = False, subject: str = "") -> int:
    """Print the operators that arrive at ``device``, the worst first; return 0 if an NPU runs all of them, else 1.

    ``subject`` is a part of ehm, MODULE:FUNCTION for a network of the user's, or "" for all of ehm. Raises BackendError
    if they cannot be recorded, ConfigError if there is no such part or function.
    """
    torch_devices = [name for name in backends.DEVICES if backends.find_framework(name) == "torch"]
    if device.partition(":")[0] not in ("auto", *torch_devices):
        known = ", ".join(torch_devices)
        raise BackendError(f"--operators --device {device}: torch's are recorded, on auto, {known}")
    if find_spec("torch") is None:
        raise BackendError(
            f"--operators: torch's are recorded, and it is not installed; {build_install_command('torch')} installs it"
        )
    answer = _ask(device, subject)
    rows = answer["operators"]
    works = not any(row["verdict"] in FAILING for row in rows)
    if json:
        print(dumps({"device": device, "subject": subject, "works": works, **answer}, indent=2))
    else:
        _print_table(f"operators of {subject or 'ehm'} on {device}", rows)
        for sentence in answer["omissions"]:
            PlainConsole().print(sentence)
    return 0 if works else 1


def _ask(device: str, subject: str) -> dict[str, Any]:
    """Let a child run what is to be recorded, with a progress bar meanwhile; return its answer."""
    console = PlainConsole(stderr=True)
    with create_progress(printer=console, transient=True) as progress:
        task = progress.add_task("loading torch", total=None)

        def tell(line: Any) -> None:
            if isinstance(line, dict) and "now" in line:
                progress.update(task, description=line["now"], completed=line["done"], total=line["total"])

        # in a child, as everything that needs a framework: a vendor's plug-in may end the process
        answer, reason = ask_child(ASK_OPERATORS, device, subject, patience=PATIENCE, tell=tell)
    if answer is None:
        raise BackendError(f"--operators: {reason}")
    if "error" in answer:
        kind = ConfigError if answer["is_config_error"] else BackendError
        raise kind(f"--operators {answer['error']}")
    found: dict[str, Any] = answer
    return found


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table("operator", "dtypes", "on an NPU", "called at", "reason", title=title)
    order = list(VERDICTS)
    for row in sorted(_merge_rows(rows), key=lambda row: (order.index(row["verdict"]), row["operator"])):
        reason = row["reason"]
        if row["verdict"] not in GOOD and row["parts"]:
            reason = f"{reason} ({', '.join(row['parts'])})"
        colour, _ = VERDICTS[row["verdict"]]
        table.add_row(row["operator"], ", ".join(row["dtypes"]), Text(row["verdict"], colour), row["site"], reason)
    console = PlainConsole(soft_wrap=False)
    console.print(table)
    for line in _summarise(rows):
        console.print(line)


def _summarise(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each verdict, with the names of the operators if it is not a good one."""
    yield f"{len({row['operator'] for row in rows})} operators."
    for verdict, (_, words) in VERDICTS.items():
        names = sorted({row["operator"] for row in rows if row["verdict"] == verdict})
        if names and verdict in GOOD:
            yield f"{len(names)} {words}."
        elif names:
            yield f"{len(names)} {words}: {', '.join(names)}."
    if not any(row["verdict"] in FAILING for row in rows):
        yield "None falls back to the CPU."


def _merge_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each call of a bad operator, and one row for each good operator, however often it is called."""
    good: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["verdict"] not in GOOD:
            yield row
        else:
            good.setdefault((row["operator"], row["reason"]), []).append(row)
    for calls in good.values():
        sites = list(dict.fromkeys(row["site"] for row in calls))
        dtypes = dict.fromkeys(dtype for row in calls for dtype in row["dtypes"])
        others = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
        yield {**calls[0], "site": sites[0] + others, "dtypes": list(dtypes)}
