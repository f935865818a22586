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
from ehm.doctor.child import ask
from ehm.errors import BackendError

__all__ = ["FALLS_BACK", "operators"]

FALLS_BACK = "falls back"
ASK_OPERATORS = """
import dataclasses, json, sys
from ehm.errors import EhmError
try:
    from ehm.backends.torch.diagnosis.operators import report
    print(json.dumps([dataclasses.asdict(row) for row in report(sys.argv[1])]))
except (EhmError, ImportError) as error:
    sys.exit(str(error))
"""
PATIENCE = 600  # seconds: a few dozen training steps, each operator looked at
WORST_FIRST = (FALLS_BACK, "synchronises", "neutral", "native")
STYLES = {"native": "green", "neutral": "green", "synchronises": "yellow", FALLS_BACK: "red"}


def operators(device: str = "auto", json: bool = False) -> int:
    """Print the operators that arrive at ``device``, the worst first; 0 when an NPU runs all of them, else 1.

    Raises BackendError where they cannot be recorded.
    """
    torchs = [name for name in backends.DEVICES if backends.framework_of(name) == "torch"]
    if device.partition(":")[0] not in ("auto", *torchs):
        raise BackendError(f"--operators --device {device}: torch's are recorded, on auto, {', '.join(torchs)}")
    if find_spec("torch") is None:
        raise BackendError(
            "--operators: torch's are recorded, and it is not installed; pip install 'ehm[torch]' installs it"
        )
    rows, reason = ask(ASK_OPERATORS, device, patience=PATIENCE)
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
    for row in sorted(_merged(rows), key=lambda row: (WORST_FIRST.index(row["verdict"]), row["operator"])):
        table.add_row(
            row["operator"],
            ", ".join(row["dtypes"]),
            Text(row["verdict"], style=STYLES[row["verdict"]]),
            row["site"],
            row["reason"],
        )
    console = PlainConsole(soft_wrap=False)
    console.print(table)
    said = f"fall back to the CPU: {', '.join(dict.fromkeys(falling))}" if falling else "none falls back to the CPU"
    console.print(f"{len({row['operator'] for row in rows})} operators; {said}.")


def _merged(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each operator that is all right, wherever it is called, and each call of one that is not."""
    fine: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["verdict"] in WORST_FIRST[:2]:
            yield row
        else:
            fine.setdefault((row["operator"], row["reason"]), []).append(row)
    for alike in fine.values():
        sites = list(dict.fromkeys(row["site"] for row in alike))
        dtypes = dict.fromkeys(dtype for row in alike for dtype in row["dtypes"])
        more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
        yield {**alike[0], "site": sites[0] + more, "dtypes": list(dtypes)}
