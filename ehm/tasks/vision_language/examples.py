"""Some answers to look at: questions of every kind, answered rightly and wrongly, with their images.

n is the number of questions that were answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from ehm.data.questions import Question, QuestionSource
from ehm.errors import BrokenImage
from ehm.report.answers import MOST_ANSWERS, ShownAnswer, save_answers
from ehm.tasks.vision_language.answers import shorten_answer
from ehm.tasks.vision_language.scores import score

__all__ = ["choose_examples", "describe_answer", "write_answers"]

_RIGHT = 0.5
"""Score from which on an answer counts as right where examples are chosen."""


def choose_examples(questions: Sequence[Question], texts: Sequence[str], most: int = MOST_ANSWERS) -> list[int]:
    """Return the places (at most ``most``) of questions of every kind, wrong answers and right ones in turn.

    They are drawn once among those of a kind, so that an evaluation of other weights shows the same images if it can.
    """
    cells: dict[tuple[str, bool], list[int]] = {}
    for place in np.random.default_rng(0).permutation(len(questions)).tolist():
        question = questions[place]
        is_right = bool(question.answers) and score(question, texts[place]) >= _RIGHT
        cells.setdefault((question.kind, is_right), []).append(place)
    ordered = [cells[key] for key in sorted(cells)]
    taken = [place for place in chain.from_iterable(zip_longest(*ordered)) if place is not None][:most]
    return sorted(taken, key=lambda place: (questions[place].kind, place))


def write_answers(
    folder: Path,
    source: QuestionSource,
    indices: Sequence[int],
    texts: Sequence[str],
    blank_texts: Sequence[str] | None = None,
) -> None:
    """Write examples of what was answered, with their images, into the folder of a run.

    ``texts`` (n,), and ``blank_texts`` (n,) of blank images, belong to the questions of ``source`` at ``indices`` (n,).
    """
    questions = [source.question(index) for index in indices]
    answers: list[tuple[ShownAnswer, Image.Image | None]] = []
    for place in choose_examples(questions, texts):
        image = None
        with suppress(BrokenImage):  # removed since it was measured
            image = source.load(indices[place])
        blank = None if blank_texts is None else blank_texts[place]
        answers.append((describe_answer(questions[place], texts[place], blank), image))
    save_answers(folder, answers)


def describe_answer(question: Question, text: str, blank_text: str | None = None) -> ShownAnswer:
    """Return what is shown of an answer: the words that count of what a model wrote, beside the truth."""
    return ShownAnswer(
        question.image,
        question.kind,
        question.text,
        _shorten(question, text),
        question.truth,
        score(question, text) if question.answers else None,
        None if blank_text is None else _shorten(question, blank_text),
    )


def _shorten(question: Question, text: str) -> str:
    # of a number the text itself says more: "no number at all" counts as 0
    return shorten_answer(text, "text" if question.rule == "number" else question.rule)
