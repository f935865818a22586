"""The table of encoders: figures over splits, and the differences from the first encoder, paired by split.

Over folds, intervals are those of the corrected resampled t-test. With one split, the source's own, they are about the
choice of its test images, which the bootstrap draws anew, the same ones for all encoders.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ehm.comparison.answers import compute_figures
from ehm.comparison.candidates import Candidate
from ehm.comparison.encoders import MemberAnswers
from ehm.comparison.images import LabelledImages
from ehm.comparison.statistics import Interval, bootstrap_interval, fold_interval
from ehm.comparison.study_table import PROBE_TITLES
from ehm.comparison.table import ComparisonTable, Difference, Row
from ehm.config import MeasureConfig
from ehm.config.comparison import FigureName, ProbeName
from ehm.errors import DataError
from ehm.storage.writing import write_text

__all__ = ["list_figures", "tabulate_encoders", "write_figures_table"]

_RESAMPLES = 1000
Found = Mapping[str, Mapping[ProbeName, MemberAnswers]]


def tabulate_encoders(
    candidates: list[Candidate], found: Found, images: LabelledImages, measure: MeasureConfig, figure: FigureName
) -> ComparisonTable:
    """Tabulate what was ``found``, each encoder compared with the first."""
    first = candidates[0]
    draws = _draw_resamples(found, images)
    values: dict[tuple[str, ProbeName], NDArray[np.float64]] = {}
    for candidate in candidates:
        for probe in measure.probes:
            answers = found[candidate.name][probe]
            values[candidate.name, probe] = _compute_values(answers, images, figure, draws, candidate.name)
    rows = []
    differences = []
    for candidate in candidates:
        figures: dict[str, Interval] = {}
        changes: dict[str, Interval] = {}
        for probe in measure.probes:
            own = values[candidate.name, probe]
            figures[probe] = _make_interval(own, images)
            changes[probe] = _make_interval(own - values[first.name, probe], images)
        rows.append(Row(candidate.title, figures, {}))
        if candidate is not first:
            differences.append(Difference(candidate.title, first.title, changes))
    measures: dict[str, str] = {probe: PROBE_TITLES[probe] for probe in measure.probes}
    chance = "over folds (corrected resampled t-test)"
    if images.is_divided:
        chance = "over the choice of test images (bootstrap)"
    notes = [f"Measured on {images.description}.", _describe_probes(measure)]
    return ComparisonTable("encoder", figure, measures, [], rows, differences, chance, notes)


def _draw_resamples(found: Found, images: LabelledImages) -> NDArray[np.int64] | None:
    """Return the rows of test images that each resample of the only split has (r, m), None if there are folds."""
    if not images.is_divided:
        return None
    (test_images,) = {
        len(answers[0].labels) for probes in found.values() for members in probes.values() for answers in members
    }
    return np.random.default_rng(0).integers(test_images, size=(_RESAMPLES, test_images))


def _compute_values(
    members: MemberAnswers,
    images: LabelledImages,
    figure: FigureName,
    draws: NDArray[np.int64] | None,
    name: str,
) -> NDArray[np.float64]:
    """Return the figure of each split, the mean over members; with ``draws`` of the only split and each draw."""
    rows = []
    for answers in members:
        if draws is None:
            samples = answers
        else:
            samples = [answers[0], *(answers[0].take(draw) for draw in draws)]
        values = [compute_figures(sample, images.classes)[figure] for sample in samples]
        if None in values:
            raise DataError(f"{name}: {figure} does not exist, because test images of a split are all of one class")
        rows.append(values)
    return np.array(rows, dtype=np.float64).mean(axis=0)


def _make_interval(values: NDArray[np.float64], images: LabelledImages) -> Interval:
    """Return the interval of what :func:`_compute_values` gave, or of a difference of two such."""
    if images.is_divided:
        return bootstrap_interval(float(values[0]), values[1:])
    return fold_interval(values.tolist(), images.test_share)


def _describe_probes(measure: MeasureConfig) -> str:
    """Return a sentence that says how encoders were measured."""
    ways = {
        "knn": f"k-NN lets the {measure.neighbours} nearest training images vote",
        "linear": "the linear probe is logistic regression, whose penalty is chosen inside the training images",
        "finetune": f"fine-tuning follows {measure.recipe}, on the first division if there are several",
    }
    return f"How: {'; '.join(ways[probe] for probe in measure.probes)}."


def list_figures(candidates: list[Candidate], found: Found, images: LabelledImages) -> list[tuple[object, ...]]:
    """Return a row for each figure of each split: encoder, member, probe, split, figure and value."""
    rows: list[tuple[object, ...]] = []
    for candidate in candidates:
        for probe, members in found[candidate.name].items():
            for member, answers in enumerate(members):
                for split, each in enumerate(answers):
                    for name, value in compute_figures(each, images.classes).items():
                        if value is not None:
                            rows.append((candidate.name, member, probe, split, name, f"{value:.6g}"))
    return rows


def write_figures_table(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write ``rows`` of :func:`list_figures` as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("encoder", "member", "probe", "split", "figure", "value"))
    writer.writerows(rows)
    return write_text(path, text.getvalue())
