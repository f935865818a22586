"""The card of a comparison, which a notebook shows."""

from __future__ import annotations

from pathlib import Path

from ehm.comparison.table import ComparisonTable
from ehm.report.card import Card, CardTable, Cell, embed_wide, render_card
from ehm.report.embedding import Picture

__all__ = ["render_comparison_card"]


def render_comparison_card(table: ComparisonTable, out: Path) -> str:
    """Return a card with the figures of all encoders or arms, their differences in sentences, and the chart.

    There is no chart in ``out`` if matplotlib is not installed.
    """
    return render_card(
        Card(
            kind="Comparison",
            title=f"{table.figure_words}, mean with its 95 % interval {table.chance}",
            tables=[_list_figures(table)],
            sentences=[*table.verdicts, *table.notes],
            wide=_embed_chart(out),
            places=[("Folder", out)],
        )
    )


def _list_figures(table: ComparisonTable) -> CardTable:
    rows = []
    for row in table.rows:
        cells = [Cell(row.name)]
        for key, text in zip(table.measures, table.list_figures(row), strict=True):
            interval = row.figures.get(key)
            is_share = interval is not None and 0 <= interval.mean <= 1
            cells.append(Cell(text, interval.mean if interval is not None and is_share else None))
        rows.append(cells)
    return CardTable([table.subject, *table.measures.values()], rows)


def _embed_chart(out: Path) -> list[Picture]:
    chart = out / "chart.png"
    picture = embed_wide(chart, "Means with their intervals") if chart.is_file() else None
    return [] if picture is None else [picture]
