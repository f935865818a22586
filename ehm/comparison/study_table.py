"""The table of a study: means over seeds, and the differences between arms, paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ehm.comparison.results import Measures, Results
from ehm.comparison.statistics import Interval, compute_seed_interval
from ehm.comparison.table import ComparisonTable, Difference, Row
from ehm.config import StudyConfig

__all__ = ["PROBE_TITLES", "tabulate_study"]

PROBE_TITLES = {"knn": "k-NN", "linear": "linear probe", "finetune": "fine-tuning"}
_RUN_COLUMNS = {"tree_height": "tree height", "largest_part": "largest part", "minutes": "minutes a run"}


def tabulate_study(study: StudyConfig, results: Results, figure: str) -> ComparisonTable:
    """Tabulate the ``results`` of a study: its arms in their order, each compared with its opponents.

    Arms without results are left out.
    """
    measures = _list_measures(study)
    by_arm: dict[str, dict[int, Measures]] = {name: {} for name in study.arms}
    for run, values in results.items():
        by_arm[run.arm][run.seed] = values
    rows = []
    differences = []
    for name, runs in by_arm.items():
        if not runs:
            continue
        figures = {}
        for key in measures:
            found = [run[key] for run in runs.values() if key in run]
            if found:
                figures[key] = compute_seed_interval(found)
        rows.append(Row(study.title_of(name), figures, _describe_runs(list(runs.values()))))
        for other in study.opponents_of(name):
            changes = _compare_runs(runs, by_arm[other], measures)
            if changes:
                differences.append(Difference(study.title_of(name), study.title_of(other), changes))
    columns = ["seeds"]
    for title in _RUN_COLUMNS.values():
        if any(title in row.cells for row in rows):
            columns.append(title)
    return ComparisonTable("arm", figure, measures, columns, rows, differences, "over seeds (Student's t)")


def _list_measures(study: StudyConfig) -> dict[str, str]:
    """Return the headings of all measures by their names in results."""
    measures = {}
    for measure in study.measure:
        for probe in measure.probes:
            key = f"{measure.name}.{probe}" if measure.name else probe
            place = f", {measure.name}" if measure.name else ""
            measures[key] = f"{PROBE_TITLES[probe]}{place}"
    return measures


def _compare_runs(
    runs: Mapping[int, Measures], others: Mapping[int, Measures], measures: Mapping[str, str]
) -> dict[str, Interval]:
    """Return the interval of each measure's difference over the seeds of both arms; empty if they share no seed."""
    differences = {}
    for key in measures:
        seeds = [seed for seed in runs if key in runs[seed] and key in others.get(seed, {})]
        if seeds:
            differences[key] = compute_seed_interval([runs[seed][key] - others[seed][key] for seed in seeds])
    return differences


def _describe_runs(runs: Sequence[Measures]) -> dict[str, str]:
    """Return the cells about the training of an arm: its number of seeds, and means over ``runs``."""
    cells = {"seeds": str(len(runs))}
    for key, title in _RUN_COLUMNS.items():
        values = [run[key] for run in runs if key in run]
        if not values:
            continue
        mean = statistics.mean(values)
        cells[title] = f"{mean:.0%}" if key == "largest_part" else f"{mean:.1f}"
    return cells
