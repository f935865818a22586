"""Examples of answers with their images: right and wrong ones to questions of every kind.

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
from ehm.tasks.vision_language.scores import score_answer

__all__ = ["choose_examples", "describe_answer", "write_answers"]

_RIGHT = 0.5
"""Among examples, answers with at least this score count as right."""


def choose_examples(questions: Sequence[Question], texts: Sequence[str], most: int = MOST_ANSWERS) -> list[int]:
    """Return the positions of at most ``most`` examples, about as many right as wrong ones of each kind of question.

    Questions are always shuffled in the same way, so that evaluations of other weights show the same images if they
    can.
    """
    groups: dict[tuple[str, bool], list[int]] = {}
    for position in np.random.default_rng(0).permutation(len(questions)).tolist():
        question = questions[position]
        is_right = bool(question.answers) and score_answer(question, texts[position]) >= _RIGHT
        groups.setdefault((question.kind, is_right), []).append(position)
    # one of each group in turn, until all are taken
    in_turn = chain.from_iterable(zip_longest(*(groups[key] for key in sorted(groups))))
    chosen = [position for position in in_turn if position is not None][:most]
    return sorted(chosen, key=lambda position: (questions[position].kind, position))


def write_answers(
    folder: Path,
    source: QuestionSource,
    indices: Sequence[int],
    texts: Sequence[str],
    blank_texts: Sequence[str] | None = None,
) -> None:
    """Write examples of answers, with their images, into the folder of a run.

    ``texts`` (n,) are the answers to the questions of ``source`` at ``indices`` (n,), and ``blank_texts`` (n,) the
    answers about blank images.
    """
    questions = [source.question(index) for index in indices]
    answers: list[tuple[ShownAnswer, Image.Image | None]] = []
    for position in choose_examples(questions, texts):
        image = None
        with suppress(BrokenImage):  # the file may have been removed since the measurement
            image = source.load(indices[position])
        blank = None if blank_texts is None else blank_texts[position]
        answers.append((describe_answer(questions[position], texts[position], blank), image))
    save_answers(folder, answers)


def describe_answer(question: Question, text: str, blank_text: str | None = None) -> ShownAnswer:
    """Return an answer for the report: the part of the text that counts, and the right answer."""
    return ShownAnswer(
        question.image,
        question.kind,
        question.text,
        _shorten_text(question, text),
        question.truth,
        score_answer(question, text) if question.answers else None,
        None if blank_text is None else _shorten_text(question, blank_text),
    )


def _shorten_text(question: Question, text: str) -> str:
    # numbers are shown as text, because a text without a number would be shown as 0
    return shorten_answer(text, "text" if question.rule == "number" else question.rule)
