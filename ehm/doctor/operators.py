"""``ehm doctor --operators``: every operator of a training step, and whether an NPU runs it itself."""

from __future__ import annotations

from json import dumps
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ehm.doctor.child import ask
from ehm.errors import BackendError

__all__ = ["FALLS_BACK", "operators"]

FALLS_BACK = "falls back"
ASK_OPERATORS = """
import dataclasses, json, sys
from ehm.errors import EhmError
try:
    from ehm.backends.torch.operators import report
    print(json.dumps([dataclasses.asdict(row) for row in report(sys.argv[1])]))
except (EhmError, ImportError) as error:
    sys.exit(str(error))
"""
STYLES = {"native": "green", "neutral": "green", "synchronises": "yellow", FALLS_BACK: "red"}


def operators(device: str = "cpu", json: bool = False) -> int:
    """Print the operators that arrive at ``device``, the worst first; 0 when an NPU runs all of them, else 1.

    Raises BackendError where they cannot be recorded.
    """
    rows, reason = ask(ASK_OPERATORS, device)
    if rows is None:
        raise BackendError(f"--operators: {reason}")
    falling = [row["operator"] for row in rows if row["verdict"] == FALLS_BACK]
    if json:
        print(dumps({"device": device, "works": not falling, "operators": rows}, indent=2))
    else:
        _show(device, rows, falling)
    return 1 if falling else 0


def _show(device: str, rows: list[dict[str, Any]], falling: list[str]) -> None:
    table = Table("operator", "dtypes", "on an NPU", "called at", "reason", title=f"operators on {device}")
    worst_first = [FALLS_BACK, "synchronises", "neutral", "native"]
    for row in sorted(rows, key=lambda row: (worst_first.index(row["verdict"]), row["operator"])):
        # Text and not str, in which rich would take [brackets] for a style.
        table.add_row(
            Text(row["operator"]),
            Text(", ".join(row["dtypes"])),
            Text(row["verdict"], style=STYLES[row["verdict"]]),
            Text(row["site"]),
            Text(row["reason"]),
        )
    console = Console()
    console.print(table)
    said = f"fall back to the CPU: {', '.join(falling)}" if falling else "none falls back to the CPU"
    console.print(f"{len(rows)} operators; {said}.", markup=False)
