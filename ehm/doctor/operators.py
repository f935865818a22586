"""``ehm doctor --operators``: every operator of training, and whether an NPU runs it itself."""

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
from ehm.errors import BackendError

__all__ = ["FALLS_BACK", "report_operators"]

FALLS_BACK = "falls back"
ASK_OPERATORS = """
import dataclasses, json, sys
from ehm.errors import EhmError
try:
    from ehm.backends.torch.diagnosis.operators import report_operators
    print(json.dumps([dataclasses.asdict(row) for row in report_operators(sys.argv[1])]))
except (EhmError, ImportError) as error:
    sys.exit(str(error))
"""
PATIENCE = 600
"""Seconds for a few dozen training steps, in which each operator is looked at."""
WORST_FIRST = (FALLS_BACK, "synchronises", "neutral", "native")
BAD_VERDICTS = (FALLS_BACK, "synchronises")
STYLES = {"native": "green", "neutral": "green", "synchronises": "yellow", FALLS_BACK: "red"}


def report_operators(device: str = "auto", json: bool = False) -> int:
    """Print the operators that arrive at ``device``, the worst first; return 0 if an NPU runs all of them, else 1.

    Raises BackendError if they cannot be recorded.
    """
    torch_devices = [name for name in backends.DEVICES if backends.framework_of(name) == "torch"]
    if device.partition(":")[0] not in ("auto", *torch_devices):
        known = ", ".join(torch_devices)
        raise BackendError(f"--operators --device {device}: torch's are recorded, on auto, {known}")
    if find_spec("torch") is None:
        raise BackendError(
            "--operators: torch's are recorded, and it is not installed; pip install 'ehm[torch]' installs it"
        )
    # In a child, as everything that needs a framework: a vendor's plug-in may end the process.
    rows, reason = ask_child(ASK_OPERATORS, device, patience=PATIENCE)
    if rows is None:
        raise BackendError(f"--operators: {reason}")
    falling_back = [row["operator"] for row in rows if row["verdict"] == FALLS_BACK]
    if json:
        print(dumps({"device": device, "works": not falling_back, "operators": rows}, indent=2))
    else:
        _print_table(device, rows, falling_back)
    return 1 if falling_back else 0


def _print_table(device: str, rows: list[dict[str, Any]], falling_back: list[str]) -> None:
    table = Table("operator", "dtypes", "on an NPU", "called at", "reason", title=f"operators on {device}")
    for row in sorted(_merge_rows(rows), key=lambda row: (WORST_FIRST.index(row["verdict"]), row["operator"])):
        table.add_row(
            row["operator"],
            ", ".join(row["dtypes"]),
            Text(row["verdict"], style=STYLES[row["verdict"]]),
            row["site"],
            row["reason"],
        )
    console = PlainConsole(soft_wrap=False)
    console.print(table)
    summary = "none falls back to the CPU"
    if falling_back:
        summary = f"fall back to the CPU: {', '.join(dict.fromkeys(falling_back))}"
    console.print(f"{len({row['operator'] for row in rows})} operators; {summary}.")


def _merge_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each call of a bad operator, and one row for each good operator, however often it is called."""
    good: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["verdict"] in BAD_VERDICTS:
            yield row
        else:
            good.setdefault((row["operator"], row["reason"]), []).append(row)
    for calls in good.values():
        sites = list(dict.fromkeys(row["site"] for row in calls))
        dtypes = dict.fromkeys(dtype for row in calls for dtype in row["dtypes"])
        others = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
        yield {**calls[0], "site": sites[0] + others, "dtypes": list(dtypes)}
