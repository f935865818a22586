"""The exit status of a verification, which a notebook shows with what was found."""

from __future__ import annotations

from pathlib import Path

from ehm.report.card import Card, CardTable, Cell, render_card
from ehm.report.numbers import format_value
from ehm.verification.report import Verification, select_rows

__all__ = ["VerificationStatus"]


class VerificationStatus(int):
    """0 if no check failed, else 1; ``found`` and ``out`` are the results and the folder that holds them."""

    found: Verification
    out: Path

    def __new__(cls, found: Verification, out: Path) -> VerificationStatus:
        """Make the status of a verification; an int takes its value here."""
        status = super().__new__(cls, 0 if found.passed else 1)
        status.found = found
        status.out = out
        return status

    def _repr_html_(self) -> str:
        rows = []
        for row in select_rows(self.found.results):
            figures = (Cell(format_value(row.measured)), Cell(format_value(row.bound)))
            rows.append([Cell(f"{row.group}: {row.name}"), Cell(row.status), *figures])
        level = "good" if self.found.passed else "note"
        return render_card(
            Card(
                kind="Verification",
                title=str(self.found.machine["device"]),
                status=(level, self.found.summary),
                tables=[CardTable(["check", "", "measured", "bound"], rows)],
                sentences=[f"not measured: {problem}" for problem in self.found.problems],
                places=[("Folder", self.out)],
            )
        )
