"""The table of a comparison: a row for each encoder or arm, and their differences, with a verdict in words on each.

It is printed, and written as JSON and as Markdown for a page to include.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Column, Table

from ehm.comparison.statistics import Interval
from ehm.console import PlainConsole, console

__all__ = ["ComparisonTable", "Difference", "Row"]

_DASH = "–"
_FIGURE_WORDS = {"top1": "top-1 accuracy", "balanced_accuracy": "balanced accuracy", "auc": "AUC"}
_EXPECTED_BY_CHANCE = 20
"""Without any difference, one 95 % interval in so many does not contain zero."""


@dataclass(frozen=True)
class Row:
    """An encoder or an arm: its figures by measure, and further ``cells`` by column."""

    name: str
    figures: Mapping[str, Interval]
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """The figures of ``name`` minus those of ``against``, by measure, paired."""

    name: str
    against: str
    figures: Mapping[str, Interval]


@dataclass(frozen=True)
class ComparisonTable:
    """A comparison by ``figure``.

    ``subject`` is the heading of the names, "encoder" or "arm". ``measures`` maps the key of each column of figures to
    its heading, and ``columns`` are the headings of further columns. ``chance`` names the source of chance that the
    intervals cover, for example "over seeds (Student's t)"; ``notes`` are sentences below the tables.
    """

    subject: str
    figure: str
    measures: Mapping[str, str]
    columns: Sequence[str]
    rows: Sequence[Row]
    differences: Sequence[Difference]
    chance: str
    notes: Sequence[str] = ()

    @property
    def figure_words(self) -> str:
        """The figure in words."""
        return _FIGURE_WORDS.get(self.figure, self.figure)

    @property
    def verdicts(self) -> list[str]:
        """A sentence about each difference; if there are many, also the number that chance alone would show."""
        sentences = []
        for difference in self.differences:
            for key, interval in difference.figures.items():
                sentences.append(self._judge_difference(difference, self.measures[key], interval))
        if len(sentences) >= _EXPECTED_BY_CHANCE // 2:
            sentences.append(
                f"Of {len(sentences)} differences about {len(sentences) / _EXPECTED_BY_CHANCE:.1f} would look shown by "
                "chance alone."
            )
        return sentences

    def _judge_difference(self, difference: Difference, measure: str, interval: Interval) -> str:
        pair = f"{difference.name} and {difference.against}"
        if interval.half is None:
            return f"{measure}: whether {pair} differ cannot be told from one value each."
        text = f"{self.figure_words} {_format_difference(interval)}"
        if interval.mean == 0 and interval.half == 0:
            return f"{measure}: {pair} are the same everywhere ({text}); a difference is not shown."
        if not interval.is_shown and abs(interval.mean) > interval.half:
            return f"{measure}: a difference between {pair} is not shown ({text}): two values are too few."
        if not interval.is_shown:
            return f"{measure}: a difference between {pair} is not shown ({text}, an interval that contains zero)."
        word = "better" if interval.mean > 0 else "worse"
        return f"{measure}: {difference.name} is {word} than {difference.against} ({text})."

    def to_markdown(self) -> str:
        """Return the tables and the sentences as Markdown."""
        headings = [self.subject, *self.leading_columns, *self.measures.values(), *self.trailing_columns]
        lines = [f"{_capitalise(self.figure_words)}, mean with its 95 % interval {self.chance}:", ""]
        lines += _format_markdown(headings, [self._list_cells(row) for row in self.rows])
        if self.differences:
            lines += ["", "Differences, paired, with their 95 % intervals; what is shown is bold:", ""]
            headings = [self.subject, "compared with", *self.measures.values()]
            lines += _format_markdown(headings, [self._list_differences(each, "**") for each in self.differences])
            lines.append("")
            lines += [f"- {sentence}" for sentence in self.verdicts]
        if self.notes:
            lines += ["", " ".join(self.notes)]
        return "\n".join(lines) + "\n"

    def show(self) -> None:
        """Print the tables and the sentences."""
        printer = PlainConsole(soft_wrap=False)
        title = f"{self.figure_words}, mean with its 95 % interval {self.chance}"
        table = Table(
            Column(self.subject, overflow="fold"),
            *self.leading_columns,
            *self.measures.values(),
            *self.trailing_columns,
            title=title,
            title_justify="left",
        )
        for row in self.rows:
            table.add_row(*self._list_cells(row))
        printer.print(table)
        if self.differences:
            table = Table(
                Column(self.subject, overflow="fold"),
                Column("compared with", overflow="fold"),
                *self.measures.values(),
                title="differences, paired, with their 95 % intervals; * is shown",
                title_justify="left",
            )
            for difference in self.differences:
                table.add_row(*self._list_differences(difference, "*"))
            printer.print(table)
        for sentence in (*self.verdicts, *self.notes):
            console.print(sentence)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        differences = []
        for difference in self.differences:
            figures = {}
            for key, interval in difference.figures.items():
                figures[key] = {**asdict(interval), "is_shown": interval.is_shown}
            differences.append({"name": difference.name, "against": difference.against, "figures": figures})
        return {
            "figure": self.figure,
            "intervals": f"95 % {self.chance}",
            "measures": dict(self.measures),
            "rows": [asdict(row) for row in self.rows],
            "differences": differences,
            "verdicts": self.verdicts,
            "notes": list(self.notes),
        }

    @property
    def leading_columns(self) -> list[str]:
        """The further columns before the figures: the number of seeds, if it is given."""
        return [name for name in self.columns if name == "seeds"]

    @property
    def trailing_columns(self) -> list[str]:
        """The further columns after the figures."""
        return [name for name in self.columns if name != "seeds"]

    def list_figures(self, row: Row) -> list[str]:
        """Return the figures of a row as texts, one for each of the measures."""
        return [_format_figure(row.figures.get(key)) for key in self.measures]

    def _list_cells(self, row: Row) -> list[str]:
        leading = [row.cells.get(name, _DASH) for name in self.leading_columns]
        trailing = [row.cells.get(name, _DASH) for name in self.trailing_columns]
        return [row.name, *leading, *self.list_figures(row), *trailing]

    def _list_differences(self, difference: Difference, mark: str) -> list[str]:
        cells = [difference.name, difference.against]
        for key in self.measures:
            interval = difference.figures.get(key)
            if interval is None:
                cells.append(_DASH)
                continue
            text = _format_difference(interval)
            if interval.is_shown:
                text = f"{mark}{text}{mark}" if mark == "**" else f"{text} {mark}"
            cells.append(text)
        return cells


def _format_figure(interval: Interval | None) -> str:
    if interval is None:
        return _DASH
    spread = "" if interval.half is None else f" ± {interval.half:.3f}"
    return f"{interval.mean:.3f}{spread}"


def _format_difference(interval: Interval) -> str:
    spread = "" if interval.half is None else f" ± {interval.half:.3f}"
    return f"{interval.mean:+.3f}{spread}"


def _format_markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        # a bar within a name would end its cell
        cells = [cell.replace("|", r"\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]
