"""The results of a study: a file for each run, and a table of all results, for use on another machine.

OUT/results/ARM/seed-S.json   the measures of one run by name, and a key of how they were measured
OUT/results.csv               arm, seed, measure, value: a row for each measure of each run
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ehm.comparison.features import make_key
from ehm.config import MeasureConfig, StudyConfig
from ehm.console import console
from ehm.errors import ConfigError, DataError
from ehm.storage.reading import read_json, read_rows
from ehm.storage.writing import write_json, write_text

__all__ = [
    "Results",
    "RunKey",
    "identify_measures",
    "load_result",
    "read_results_table",
    "result_path",
    "save_result",
    "write_results_table",
]

_COLUMNS = ("arm", "seed", "measure", "value")
Measures = dict[str, float]
"""The figures of one run by their names."""

_LATER_KEYS = ("image_folder", "columns")
"""Keys of a measurement that were added later; at their defaults they do not change its key."""


@dataclass(frozen=True, order=True)
class RunKey:
    """A run of a study: its arm and its seed."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


Results = dict[RunKey, Measures]


def result_path(out: Path, run: RunKey) -> Path:
    """Return the file with the measures of ``run``."""
    return out / "results" / run.arm / f"seed-{run.seed}.json"


def identify_measures(measures: Sequence[MeasureConfig]) -> str:
    """Return a key of the settings that the figures of a study depend on: all but the number of workers."""
    described = []
    for each in measures:
        # left out if unset, so that results of versions without these keys stay valid
        unset = {key for key in _LATER_KEYS if getattr(each, key) == MeasureConfig.model_fields[key].default}
        described.append(each.model_dump(mode="json", exclude={"workers", *unset}))
    return make_key({"measures": described})


def save_result(out: Path, run: RunKey, measures: Mapping[str, float], study: StudyConfig) -> Path:
    """Write the measures of ``run``, complete or not at all."""
    values = {
        "arm": run.arm,
        "seed": run.seed,
        "measures": dict(measures),
        "measured": identify_measures(study.measure),
    }
    return write_json(result_path(out, run), values)


def load_result(out: Path, run: RunKey, study: StudyConfig, can_measure: bool) -> Measures | None:
    """Return the measures of ``run``, or None if it has to be measured: for the first time, or with new settings.

    ``can_measure`` is true if the run is there to be measured again. Raises ConfigError if the settings have changed
    and it is not, and DataError if the file cannot be read.
    """
    path = result_path(out, run)
    if not path.is_file():
        return None
    values = read_json(path, DataError, "the result of a run")
    try:
        measures = {str(name): float(value) for name, value in values["measures"].items()}
        is_current = values["measured"] == identify_measures(study.measure)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(f"{path}: not the result of a run; remove it, and the run is measured again") from None
    if is_current:
        return measures
    if can_measure:
        return None
    raise ConfigError(
        f"{path}: was measured otherwise than the section measure says now, and its run is not there to be measured "
        "again; bring back the section or the run, or remove the file"
    )


def write_results_table(path: Path, results: Results) -> Path:
    """Write one row for each measure of each run."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for run, measures in results.items():
        for name, value in measures.items():
            rows.writerow((run.arm, run.seed, name, f"{value:.6g}"))
    return write_text(path, text.getvalue())


def read_results_table(path: Path, runs: Iterable[RunKey]) -> Results:
    """Read the results of ``runs`` from a table that :func:`write_results_table` wrote, here or elsewhere.

    Rows of other runs are ignored; a line says how many there are. Raises DataError if a row cannot be read.
    """
    wanted = set(runs)
    results: Results = {}
    others: dict[str, None] = {}  # a set that keeps the order of the table
    try:
        for line, row in read_rows(path, _COLUMNS):
            try:
                run = RunKey(row["arm"], int(row["seed"]))
                value = float(row["value"])
            except ValueError:
                raise DataError(f"{path}: line {line}: expected a whole number as seed and a number as value") from None
            if not math.isfinite(value):
                raise DataError(f"{path}: line {line}: the value {row['value']} is not finite")
            if run in wanted:
                results.setdefault(run, {})[row["measure"]] = value
            else:
                others[str(run)] = None
    except OSError as error:
        raise DataError(f"--results {path}: cannot be read: {error.strerror}") from None
    if others:
        console.print(f"{path}: {len(others)} runs are none of this study ({next(iter(others))}, ...) and are ignored")
    return results
