"""The results as a table, as ``verify.json`` and as ``verify.md``, which people can post as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ehm.console import PlainConsole
from ehm.storage.writing import write_json, write_text
from ehm.verification.check import Result
from ehm.verification.machine import hide_private
from ehm.verification.speed import Speed

__all__ = ["Verification", "print_table", "select_rows", "write_results"]

STYLES = {"pass": "green", "fail": "red", "skipped": "dim"}


@dataclass(frozen=True)
class Verification:
    """All that was found out: when, on what, by which checks, and how fast; ``problems`` are of the speed table."""

    date: str
    command: str
    seconds: float
    machine: Mapping[str, Any]
    results: Sequence[Result]
    speeds: Sequence[Speed]
    problems: Sequence[str]

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return all(result.status != "fail" for result in self.results)

    @property
    def summary(self) -> str:
        """The verdict in a sentence."""
        counts = Counter(result.status for result in self.results)
        verdict = "passed" if self.passed else "FAILED"
        return f"{verdict}: {counts['pass']} within bounds, {counts['fail']} failed, {counts['skipped']} skipped"

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return {"passed": self.passed, "summary": self.summary, **asdict(self)}

    def hide_private(self) -> Verification:
        """Return a copy without names and paths of this machine, which the errors of other programs may hold."""
        results = [replace(result, detail=hide_private(result.detail)) for result in self.results]
        return replace(self, results=results, problems=[hide_private(problem) for problem in self.problems])


def print_table(verification: Verification) -> None:
    """Print the checks that failed or were skipped, a line for each group of the others, and the speeds."""
    console = PlainConsole(soft_wrap=False)
    table = Table("check", "", "measured", "bound", "", title=f"ehm verify: {verification.machine['device']}")
    for row in select_rows(verification.results):
        state = Text(row.status, style=STYLES[row.status])
        table.add_row(f"{row.group}: {row.name}", state, _format(row.measured), _format(row.bound), row.detail)
    console.print(table)
    if verification.speeds:
        console.print(_make_speed_table(verification.speeds))
    for problem in verification.problems:
        console.print(f"not measured: {problem}")


def write_results(verification: Verification, folder: Path) -> tuple[Path, Path]:
    """Write ``verify.json`` and ``verify.md`` into ``folder`` and return their paths."""
    public = verification.hide_private()
    values = write_json(folder / "verify.json", public.to_json())
    return values, write_text(folder / "verify.md", _write_markdown(public))


def _make_speed_table(speeds: Sequence[Speed]) -> Table:
    """Return a table that fits into 80 columns: what all rows have in common stands in its title."""
    title = f"speed in {speeds[0].dtype}, batches of {speeds[0].batch_size}"
    table = Table("model", "masks, trees", title=title, caption=_SPEED_LEGEND)
    for column in _SPEED_COLUMNS[_FIRST_FIGURE:]:
        table.add_column(column, justify="right", no_wrap=True)
    for speed in speeds:
        masks = f"{speed.masking}, {speed.build}".removesuffix(", ")
        table.add_row(speed.model, masks, *_list_cells(speed)[_FIRST_FIGURE:])
    return table


def select_rows(results: Sequence[Result]) -> Iterator[Result]:
    """Yield of each group the row that came nearest to its bound, each reason to skip once, and all that failed."""
    nearest: dict[str, Result] = {}
    counts: Counter[str] = Counter()
    skipped: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.status == "pass":
            counts[result.group] += 1
            if result.group not in nearest or _share_of_bound(result) > _share_of_bound(nearest[result.group]):
                nearest[result.group] = result
        elif result.status == "skipped":
            skipped.setdefault((result.group, result.detail), []).append(result.name)
    for group, result in nearest.items():
        yield replace(result, name=f"{counts[group]} passed, nearest to its bound: {result.name}")
    for (group, reason), names in skipped.items():
        yield Result(group, names[0] if len(names) == 1 else f"{len(names)} checks", "skipped", detail=reason)
    yield from (result for result in results if result.status == "fail")


def _share_of_bound(result: Result) -> float:
    if not result.bound or result.measured is None:
        return 0.0
    return result.measured / result.bound


_SPEED_COLUMNS = (
    "model",
    "type",
    "masks",
    "trees",
    "batch",
    "images/s",
    "data",
    "attention",
    "masks",
    "step",
    "memory",
)


_FIRST_FIGURE = 5
"""Columns before it say what was measured."""
_SPEED_LEGEND = (
    "data: share of the time in which the loop waits for images; attention: the pass over all patches; masks: trees "
    "and masks; step: gradients and optimiser; each part by itself, in milliseconds; memory: GiB"
)


def _list_cells(speed: Speed) -> list[str]:
    return [
        speed.model,
        speed.dtype,
        speed.masking,
        speed.build,
        str(speed.batch_size),
        f"{speed.images_per_second:.1f}",
        f"{speed.data_share:.0%}",
        "" if speed.attention_ms is None else f"{speed.attention_ms:.0f}",
        f"{speed.masks_ms:.0f}",
        f"{speed.step_ms:.0f}",
        f"{speed.memory_gib:.1f}",
    ]


def _write_markdown(verification: Verification) -> str:
    machine = dict(verification.machine)
    packages = machine.pop("packages")
    lines = [f"# {verification.command}: {verification.summary}", ""]
    lines.append(f"{verification.date}, {verification.seconds:.0f} seconds.")
    lines += ["", "| | |", "|---|---|"]
    lines += [
        f"| {name.replace('_', ' ')} | {_describe(value)} |" for name, value in machine.items() if value is not None
    ]
    lines.append(f"| packages | {', '.join(f'{name} {number}' for name, number in packages.items())} |")
    lines += ["", "| group | check | verdict | measured | bound | compared with |", "|---|---|---|---|---|---|"]
    for row in verification.results:
        cells = (row.group, row.name, row.status, _format(row.measured), _format(row.bound), row.detail)
        lines.append(_write_row(cells))
    if verification.speeds:
        load = verification.machine["load"]
        lines += ["", f"Speeds decide nothing; the load of the machine was {load} before. {_SPEED_LEGEND}.", ""]
        lines += [_write_row(_SPEED_COLUMNS), "|---" * len(_SPEED_COLUMNS) + "|"]
        lines += [_write_row(_list_cells(speed)) for speed in verification.speeds]
    lines += [f"\nNot measured: {problem}" for problem in verification.problems]
    return "\n".join(lines) + "\n"


def _write_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _describe(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
