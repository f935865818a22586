"""The cards of runs and of their figures, by which notebooks show the results of the functions of ``ehm``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ehm.errors import EhmError
from ehm.report.card import CaptionedPicture, Card, CardTable, Cell, embed_small, embed_wide, render_card
from ehm.report.chart import Chart
from ehm.report.curves import Curves
from ehm.report.embedding import Picture, find_newest_pages
from ehm.report.known_figures import ROWS_BY_KEY
from ehm.report.measured import Measurement, read_measurements
from ehm.report.mistakes import read_mistakes
from ehm.report.next_steps import NextStep, list_uses
from ehm.report.numbers import PLAIN, format_share, format_value
from ehm.report.overview import RUN_NAMES, Tile, choose_tiles, describe_status, write_title
from ehm.report.python_calls import convert_to_python
from ehm.report.record import RunRecord, read_record
from ehm.report.run_charts import draw_charts
from ehm.report.write import REPORT_FILE

__all__ = ["FiguresCard", "list_tiles", "render_run_card"]

_CHARTED_GROUPS = ("measured", "features", "learning", "tokens", "masks")
"""Groups of figures whose first chart is shown on a card."""
_MOST_CHARTS = 3
_MOST_MISTAKES = 6
_MOST_CLASSES = 10


def render_run_card(folder: Path) -> str | None:
    """Return the card of the run in ``folder``; None if there is no run any more."""
    try:
        record = read_record(folder)
    except EhmError:
        return None
    measurements = read_measurements(record)
    return render_card(
        Card(
            kind=RUN_NAMES[record.kind],
            title=write_title(record),
            status=describe_status(record) if record.kind != "probe" else None,
            tiles=choose_tiles(record, measurements),
            tables=_list_classes(measurements),
            charts=_choose_charts(record.curves),
            wide=_embed_first_page(folder),
            small=_embed_mistakes(folder),
            small_title="Worst mistakes on held-out images",
            places=_list_places(folder),
            next_steps=_list_steps(record),
        )
    )


def list_tiles(figures: Mapping[str, float | None]) -> list[Tile]:
    """Return a tile for each figure that is not None, with its title and unit in reports."""
    tiles = []
    for key, value in figures.items():
        if value is None:
            continue
        row = ROWS_BY_KEY.get(key)
        if row is None:
            tiles.append(Tile(key.replace("_", " "), format_value(value, PLAIN)))
        elif len(row.keys) == 1:
            tiles.append(Tile(row.title, format_value(value, row.unit)))
        else:
            tiles.append(Tile(f"{row.title}: {row.keys[key]}", format_value(value, row.unit)))
    return tiles


class FiguresCard:
    """Shows the ``figures`` of a report as a card in notebooks."""

    def _repr_html_(self) -> str:
        figures: Any = getattr(self, "figures", {})
        return render_card(Card(kind="Measured", tiles=list_tiles(figures)))


def _list_classes(measurements: Sequence[Measurement]) -> list[CardTable]:
    """Return a list with the table of classes, or of the worst ones if there are many; empty without classes."""
    table = measurements[0].table if measurements else None
    if table is None:
        return []
    numbers = list(range(len(table.names)))
    if len(numbers) > _MOST_CLASSES:
        numbers = table.worst_first[:_MOST_CLASSES]
    rows = []
    for number in numbers:
        cells = [Cell(table.names[number])]
        for shares in table.shares.values():
            cells.append(Cell(format_share(shares[number]), shares[number]))
        for counts in table.counts.values():
            cells.append(Cell(f"{counts[number]:,}"))
        rows.append(cells)
    return [CardTable([table.heading, *table.shares, *table.counts], rows)]


def _choose_charts(curves: Curves) -> list[Chart]:
    charts = draw_charts(curves)
    chosen = [charts[group][0] for group in _CHARTED_GROUPS if group in charts]
    return chosen[:_MOST_CHARTS]


def _embed_first_page(folder: Path) -> list[Picture]:
    """Return a list with the newest page of a run, of reconstructions or of a task's pictures; empty without pages."""
    pages = find_newest_pages(folder / "pictures")
    if not pages:
        return []
    path, step = pages[-1]
    name = path.stem.partition("-")[0].capitalize()
    picture = embed_wide(path, name if step is None else f"{name} after step {step:,}")
    return [] if picture is None else [picture]


def _embed_mistakes(folder: Path) -> list[CaptionedPicture]:
    shown = []
    for mistake, path in read_mistakes(folder)[:_MOST_MISTAKES]:
        picture = None if path is None else embed_small(path, mistake.image)
        if picture is not None:
            lines = (f"is {mistake.true}", f"called {mistake.predicted}", f"sure {format_share(mistake.confidence)}")
            shown.append(CaptionedPicture(picture, lines))
    return shown


def _list_places(folder: Path) -> list[tuple[str, Path]]:
    places = [("Folder", folder)]
    if (folder / REPORT_FILE).is_file():
        places.append(("Report", folder / REPORT_FILE))
    return places


def _list_steps(record: RunRecord) -> list[NextStep]:
    return [replace(step, command=convert_to_python(step.command)) for step in list_uses(record)]
