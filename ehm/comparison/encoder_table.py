"""The table of encoders: figures over splits, and the differences from the first encoder, paired by split.

Intervals over folds come from the corrected resampled t-test. If the source has a validation part of its own, there is
one split, and the intervals are about the choice of its test images: the bootstrap resamples these, in the same way for
all encoders.
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
from ehm.comparison.statistics import Interval, compute_bootstrap_interval, compute_fold_interval
from ehm.comparison.study_table import PROBE_TITLES
from ehm.comparison.table import ComparisonTable, Difference, Row
from ehm.config import MeasureConfig
from ehm.config.comparison import FigureName, ProbeName
from ehm.errors import DataError
from ehm.storage.writing import write_text

__all__ = ["list_figures", "tabulate_encoders", "write_figures_table"]

_RESAMPLES = 1000
AnswersByProbe = Mapping[str, Mapping[ProbeName, MemberAnswers]]
"""The answers of each candidate, by its name and by probe."""


def tabulate_encoders(
    candidates: list[Candidate],
    answers: AnswersByProbe,
    images: LabelledImages,
    measure: MeasureConfig,
    figure: FigureName,
) -> ComparisonTable:
    """Tabulate ``figure`` of the ``answers``, and compare each encoder with the first."""
    first = candidates[0]
    draws = _draw_resamples(answers, images)
    values: dict[tuple[str, ProbeName], NDArray[np.float64]] = {}
    for candidate in candidates:
        for probe in measure.probes:
            members = answers[candidate.name][probe]
            values[candidate.name, probe] = _compute_values(members, images, figure, draws, candidate.name)
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


def _draw_resamples(answers: AnswersByProbe, images: LabelledImages) -> NDArray[np.int64] | None:
    """Return the rows of the test images in each resample of the only split (r, m), or None if there are folds."""
    if not images.is_divided:
        return None
    counts = set()
    for probes in answers.values():
        for members in probes.values():
            for splits in members:
                counts.add(len(splits[0].labels))
    # all have answered for the same images; otherwise they could not be compared on the same resamples
    (test_images,) = counts
    return np.random.default_rng(0).integers(test_images, size=(_RESAMPLES, test_images))


def _compute_values(
    members: MemberAnswers,
    images: LabelledImages,
    figure: FigureName,
    draws: NDArray[np.int64] | None,
    name: str,
) -> NDArray[np.float64]:
    """Return the ``figure`` of each split (splits,), the mean over members.

    With ``draws`` (r, m) there is one split, and the result (1 + r,) has its figure and that of each resample.
    """
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
    """Return the interval of the result of :func:`_compute_values`, or of a difference of two such results."""
    if images.is_divided:
        return compute_bootstrap_interval(float(values[0]), values[1:])
    return compute_fold_interval(values.tolist(), images.test_share)


def _describe_probes(measure: MeasureConfig) -> str:
    """Return a sentence that says how encoders were measured."""
    ways = {
        "knn": f"k-NN lets the {measure.neighbours} nearest training images vote",
        "linear": "the linear probe is logistic regression, whose penalty is chosen inside the training images",
        "finetune": f"fine-tuning follows {measure.recipe}, on the first division if there are several",
    }
    return f"How: {'; '.join(ways[probe] for probe in measure.probes)}."


def list_figures(
    candidates: list[Candidate], answers: AnswersByProbe, images: LabelledImages
) -> list[tuple[object, ...]]:
    """Return a row for each figure of each split: encoder, member, probe, split, figure and value."""
    rows: list[tuple[object, ...]] = []
    for candidate in candidates:
        for probe, members in answers[candidate.name].items():
            for member, splits in enumerate(members):
                for split, split_answers in enumerate(splits):
                    for name, value in compute_figures(split_answers, images.classes).items():
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
