"""The charts of a run, by the groups of its figures."""

from __future__ import annotations

from ehm.report.chart import Chart, draw_chart
from ehm.report.curves import Curves
from ehm.report.known_figures import GROUPS, KNOWN_FIGURES, ROWS_BY_KEY, FigureRow
from ehm.report.numbers import PLAIN

__all__ = ["draw_charts"]


def draw_charts(curves: Curves) -> dict[str, list[Chart]]:
    """Return the charts of each group of `GROUPS` that has any, in its order.

    Known figures come in the order of their table, and then one chart for each other key.
    """
    rows = list(KNOWN_FIGURES)
    for key in curves.by_key:
        if key not in ROWS_BY_KEY:
            rows.append(FigureRow("other", key, {key: key}, "", PLAIN))
    charts: dict[str, list[Chart]] = {group: [] for group in GROUPS}
    for row in rows:
        lines = []
        for key, label in row.keys.items():
            if curves.find(key) is not None:
                # the complete curve, because values that are not finite are drawn as gaps
                lines.append((label, curves.by_key[key]))
        if lines:
            charts[row.group].append(
                draw_chart(row.title, row.meaning, lines, curves.steps_per_epoch, row.unit, row.from_zero)
            )
    return {group: found for group, found in charts.items() if found}
