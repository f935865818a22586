"""The card of the figures of a source, which a notebook shows."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from ehm.report.card import Card, CardTable, Cell, embed_wide, render_card
from ehm.report.overview import Tile

if TYPE_CHECKING:
    from ehm.analysis.data_stats.result import DataStatistics

__all__ = ["THUMBNAILS_FILE", "render_data_card"]

THUMBNAILS_FILE = "thumbnails.png"


def render_data_card(statistics: DataStatistics) -> str:
    """Return a card with counts, the mean and deviation of each channel, and the thumbnails of the source."""
    copies = sum(len(group) - 1 for group in statistics.duplicates)
    width = median(width for width, _ in statistics.sizes)
    height = median(height for _, height in statistics.sizes)
    sizes = len(set(statistics.sizes))
    tiles = [
        Tile("Images", f"{statistics.images:,}"),
        Tile("Unreadable", f"{len(statistics.broken):,}"),
        Tile("Copies", f"{copies:,}", "with the bytes of another file"),
        Tile("Pixels", f"{width:g} x {height:g}", "all of them" if sizes == 1 else f"median of {sizes:,} sizes"),
    ]
    rows = []
    for name, mean, deviation in zip(statistics.pixels.names, statistics.mean, statistics.std, strict=True):
        rows.append([Cell(name), Cell(f"{mean:.4f}"), Cell(f"{deviation:.4f}")])
    thumbnails = None
    if statistics.out is not None:
        thumbnails = embed_wide(statistics.out / THUMBNAILS_FILE, "Some of the images")
    return render_card(
        Card(
            kind="Images",
            title=statistics.source,
            tiles=tiles,
            tables=[CardTable(["channel", "mean", "deviation"], rows)],
            wide=[] if thumbnails is None else [thumbnails],
            places=[] if statistics.out is None else [("Folder", statistics.out)],
        )
    )
