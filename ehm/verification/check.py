"""Checks and their results: a check measures something, and each measurement passes if it is within its bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ehm.console import console, is_notebook
from ehm.errors import EhmError
from ehm.progress_bar import create_progress

__all__ = ["Check", "Measurement", "Result", "SkipError", "Status", "run_checks"]

Status = Literal["pass", "fail", "skipped"]


class SkipError(Exception):
    """A check that does not apply here; the message is the reason, in a sentence."""


@dataclass(frozen=True)
class Measurement:
    """A number that may be ``bound`` at most; ``detail`` says in words what was compared."""

    name: str
    value: float
    bound: float
    detail: str = ""


@dataclass(frozen=True)
class Result:
    """A row of the table: a measurement with its verdict, or the reason why there is none."""

    group: str
    name: str
    status: Status
    measured: float | None = None
    bound: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """A function that measures, which is named in the table; ``seconds`` are about what it takes on two CPU cores."""

    group: str
    name: str
    seconds: float
    measure: Callable[[], Iterable[Measurement]]


def run_checks(checks: Sequence[Check]) -> list[Result]:
    """Run all checks and return their results; one that raises is a failed one, and the others go on."""
    results: list[Result] = []
    start = time.monotonic()
    done = 0.0
    total = sum(check.seconds for check in checks)
    # elsewhere a line for each check says how far this is
    with create_progress(hidden=not is_notebook()) as progress:
        bar = progress.add_task("verify", total=len(checks), check="")
        for number, check in enumerate(checks, start=1):
            progress.update(bar, check=f"{check.group}: {check.name}")
            found = _run_check(check)
            results += found
            done += check.seconds
            spent = time.monotonic() - start
            left = spent / done * (total - done)
            worst = _find_worst(found)
            progress.update(bar, completed=number)
            if worst == "fail" or not is_notebook():
                console.print(f"[{number}/{len(checks)}] {check.group}: {check.name}: {worst}; about {left:.0f} s left")
    return results


def _run_check(check: Check) -> list[Result]:
    results = []
    try:
        for measurement in check.measure():
            results.append(_judge(check, measurement))
    except SkipError as reason:
        results.append(Result(check.group, check.name, "skipped", detail=str(reason)))
    except EhmError as error:
        results.append(Result(check.group, check.name, "fail", detail=str(error)))
    except Exception as error:  # whatever a device or a vendor's package raises
        words = str(error).strip().splitlines() or ["no message"]
        results.append(Result(check.group, check.name, "fail", detail=f"{type(error).__name__}: {words[0]}"))
    return results


def _judge(check: Check, measurement: Measurement) -> Result:
    name = f"{check.name}: {measurement.name}" if measurement.name else check.name
    # written so that a value that is no number fails
    status: Status = "pass" if measurement.value <= measurement.bound else "fail"
    value = measurement.value if math.isfinite(measurement.value) else None
    detail = measurement.detail if value is not None else f"{measurement.value}; {measurement.detail}"
    return Result(check.group, name, status, value, measurement.bound, detail)


def _find_worst(results: Sequence[Result]) -> Status:
    statuses: tuple[Status, ...] = ("fail", "pass")
    for status in statuses:
        if any(result.status == status for result in results):
            return status
    return "skipped"
