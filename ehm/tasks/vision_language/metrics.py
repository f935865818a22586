"""Figures of answers to questions, for each benchmark and each kind of question, and baselines without images.

n is the number of questions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ehm.console import console
from ehm.data.questions import Question
from ehm.report.run_card import FiguresCard
from ehm.tasks.vision_language.answers import find_number
from ehm.tasks.vision_language.baselines import find_commonest_answer, score_commonest
from ehm.tasks.vision_language.scores import score_answer, score_answer_exactly

__all__ = ["BenchmarkReport", "KindFigures", "VisionLanguageReport", "report_benchmark"]

_MOST_GROUPS = 12
"""Finer groups are printed if there are no more than this; metrics.json always has them."""


@dataclass(frozen=True)
class KindFigures:
    """The figures of the ``questions`` of one kind, or of a finer group, as shares of 1.

    ``accuracy`` is the mean score. ``blank`` is the mean score of the same model on blank images, None if it was not
    measured. ``commonest`` is the mean score of always giving the commonest answer to these questions. Groups of counts
    are made by the true number, so that for them it is the commonest answer to all counts.
    """

    name: str
    questions: int
    accuracy: float
    blank: float | None
    commonest: float


@dataclass(frozen=True)
class BenchmarkReport:
    """The figures of one benchmark, as shares of 1; None if they cannot be measured.

    - ``questions`` is the number of questions that were measured, and ``unpublished`` that of questions without
      published answers, which were not;
    - ``accuracy`` is the mean score by the paper's rules, and ``exact`` by VQAv2's official rule;
    - ``blank`` is the accuracy of the same model if all images are blank;
    - ``commonest`` is the accuracy of always giving the commonest answer to each kind of question, and
      ``commonest_of_subject`` to each name of an object;
    - ``mean_error`` and ``root_mean_square_error`` are errors of counts, in objects.
    """

    name: str
    questions: int
    unpublished: int
    accuracy: float | None
    exact: float | None
    blank: float | None
    commonest: float | None
    commonest_of_subject: float | None
    mean_error: float | None
    root_mean_square_error: float | None
    kinds: tuple[KindFigures, ...]
    groups: tuple[KindFigures, ...]

    def show(self) -> None:
        """Print the figures, and a table with a row for each kind of question and, if they are few, each group."""
        if self.accuracy is None:
            console.print(f"{self.name}: {self.unpublished:,} questions without published answers: nothing to measure")
            return
        console.print(f"{self.name}: {self._describe()} on {self.questions:,} questions")
        rows = [*self.kinds]
        if len(self.kinds) > 1:
            assert self.commonest is not None  # as the accuracy, it exists if there are questions
            rows.append(KindFigures("all", self.questions, self.accuracy, self.blank, self.commonest))
        if len(self.groups) <= _MOST_GROUPS:
            rows += self.groups
        table = Table("questions", "number", "accuracy")
        for name in ("blank images", "commonest answer"):
            table.add_column(name, justify="right")
        for row in rows:
            shares = (row.accuracy, row.blank, row.commonest)
            table.add_row(row.name, f"{row.questions:,}", *map(_format_share, shares))
        console.print(table)

    def _describe(self) -> str:
        """Return the figures of all questions together as one sentence."""
        parts = [f"accuracy {_format_share(self.accuracy)}"]
        if self.exact is not None:
            parts.append(f"by the official rule {_format_share(self.exact)}")
        if self.blank is not None:
            parts.append(f"on blank images {_format_share(self.blank)}")
        parts.append(f"with the commonest answer of each kind {_format_share(self.commonest)}")
        if self.commonest_of_subject is not None:
            parts.append(f"of each object's name {_format_share(self.commonest_of_subject)}")
        if self.mean_error is not None and self.root_mean_square_error is not None:
            parts.append(f"counts wrong by {self.mean_error:.2f}, root mean square {self.root_mean_square_error:.2f}")
        return ", ".join(parts)


@dataclass(frozen=True)
class VisionLanguageReport(FiguresCard):
    """The figures of all benchmarks. The score is the mean of their accuracies, as in the paper's table."""

    benchmarks: tuple[BenchmarkReport, ...]

    @property
    def figures(self) -> Mapping[str, float | None]:
        """The means over the benchmarks, and the accuracy of each; if there is only one, of each kind of question."""
        figures = {
            "accuracy": _average_known([each.accuracy for each in self.benchmarks]),
            "accuracy_blank": _average_known([each.blank for each in self.benchmarks]),
            "accuracy_commonest": _average_known([each.commonest for each in self.benchmarks]),
        }
        if len(self.benchmarks) > 1:
            for each in self.benchmarks:
                figures[f"accuracy_{_make_key(each.name)}"] = each.accuracy
            return figures
        for benchmark in self.benchmarks:
            figures["accuracy_exact"] = benchmark.exact
            figures["count_error"] = benchmark.mean_error
            if len(benchmark.kinds) > 1:
                for kind in benchmark.kinds:
                    figures[f"accuracy_{_make_key(kind.name)}"] = kind.accuracy
        return figures

    @property
    def score(self) -> float:
        """The figure that the best checkpoint is chosen by: the mean accuracy."""
        return self.figures["accuracy"] or 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``."""
        return {**self.figures, "benchmarks": [asdict(each) for each in self.benchmarks]}

    def show(self) -> None:
        """Print each benchmark, and the mean of several."""
        for each in self.benchmarks:
            each.show()
        if len(self.benchmarks) > 1:
            figures = self.figures
            console.print(
                f"mean of {len(self.benchmarks)} benchmarks: accuracy {_format_share(figures['accuracy'])}, on blank "
                f"images {_format_share(figures['accuracy_blank'])}, with the commonest answers "
                f"{_format_share(figures['accuracy_commonest'])}"
            )


def report_benchmark(
    name: str, questions: Sequence[Question], texts: Sequence[str], blank_texts: Sequence[str] | None = None
) -> BenchmarkReport:
    """Return the figures of ``texts`` (n,), the answers of a model to ``questions`` (n,).

    ``blank_texts`` (n,) are its answers about blank images; None if these were not asked.
    """
    answered = [index for index, question in enumerate(questions) if question.answers]
    known = [questions[index] for index in answered]
    written = [texts[index] for index in answered]
    scores = list(map(score_answer, known, written))
    blank = None
    if blank_texts is not None:
        blank = list(map(score_answer, known, [blank_texts[index] for index in answered]))
    exact = None
    if any(question.has_votes for question in known):
        exact = _average_known(list(map(score_answer_exactly, known, written)))
    by_subject = None
    if any(question.subject for question in known):
        by_subject = score_commonest(known, lambda question: question.subject)
    errors = []
    for question, text in zip(known, written, strict=True):
        if question.rule == "number":
            errors.append(abs(find_number(text) - find_number(question.answers[0])))
    return BenchmarkReport(
        name=name,
        questions=len(known),
        unpublished=len(questions) - len(known),
        accuracy=_average_known(scores),
        exact=exact,
        blank=None if blank is None else _average_known(blank),
        commonest=score_commonest(known, lambda question: question.kind) if known else None,
        commonest_of_subject=by_subject,
        mean_error=_average_known(errors),
        root_mean_square_error=math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else None,
        kinds=_report_groups(known, scores, blank, lambda question: question.kind),
        groups=_report_groups(known, scores, blank, lambda question: question.group, _find_answer_to_counts(known)),
    )


def _report_groups(
    questions: Sequence[Question],
    scores: Sequence[float],
    blank: Sequence[float] | None,
    group_of: Callable[[Question], str],
    answer_to_counts: str | None = None,
) -> tuple[KindFigures, ...]:
    """Return the figures of each group of questions, the largest first, without questions of no group ("").

    ``answer_to_counts`` is taken as the commonest answer of groups of counts; if None, each group has its own.
    """
    members: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        members.setdefault(group_of(question), []).append(index)
    members.pop("", None)
    found = []
    for name, indices in sorted(members.items(), key=lambda item: (-len(item[1]), item[0])):
        own = [questions[index] for index in indices]
        commonest = find_commonest_answer(own)
        if answer_to_counts is not None and own[0].rule == "number":
            commonest = answer_to_counts
        count = len(indices)
        accuracy = sum(scores[index] for index in indices) / count
        accuracy_blank = None if blank is None else sum(blank[index] for index in indices) / count
        accuracy_commonest = sum(score_answer(question, commonest) for question in own) / count
        found.append(KindFigures(name, count, accuracy, accuracy_blank, accuracy_commonest))
    return tuple(found)


def _find_answer_to_counts(questions: Sequence[Question]) -> str | None:
    counts = [question for question in questions if question.rule == "number"]
    return find_commonest_answer(counts) if counts else None


def _average_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _make_key(name: str) -> str:
    """Return ``name`` in the form of a key: lower case, with underscores."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _format_share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
