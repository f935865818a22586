"""Write the report of a run into its folder: by ``ehm report``, or at the end of the run, which never fails by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ehm.console import console
from ehm.report.page import render_page
from ehm.report.record import read_record
from ehm.storage.writing import write_text

__all__ = ["REPORT_FILE", "write_final_report", "write_report"]

REPORT_FILE = "report.html"


def write_report(run: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run, complete or not, in place of an earlier one.

    Returns its path. Raises CheckpointError if the folder has no run, or a configuration with values that no run can
    have, and WriteError if the file cannot be written.
    """
    folder = Path(run)
    path = write_text(folder / REPORT_FILE, render_page(read_record(folder)))
    console.print(f"Report: {path}")
    return path


def write_final_report(folder: Path, draw: Callable[[Path], object] | None = None) -> None:
    """Write the report at the end of a run, after everything else; only the main process calls this.

    ``draw`` writes pictures into the folder first. If anything goes wrong, a sentence is printed, and no error raised.
    """
    try:
        if draw is not None:
            draw(folder)
        write_report(folder)
    # any error: after days of training, a mistake in drawing a chart must not make the command fail
    except Exception as error:
        reason = str(error) or type(error).__name__
        console.print(f"{folder / REPORT_FILE}: the report was not written: {reason}")
        console.print(f"  Everything else of the run is; ehm report {folder} writes the report")
