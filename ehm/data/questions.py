"""Questions about images: one of them, and sources that are read by the number of the question."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ehm.data.sources.base import Source

__all__ = ["Question", "QuestionSource", "Rule", "draw_answer", "names_a_side"]

Rule = Literal["text", "yes_no", "number"]
"""The ways to take an answer out of a text: as it stands, the first yes or no in it, or the first number."""
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
_NAMED_ANSWERS = 3
"""Answers of people that are named as the truth."""
_ANSWER_STREAM = 4
"""Begins the seed of every draw of an answer, which keeps it apart from those of samples and shuffles."""


@dataclass(frozen=True)
class Question:
    """A question about an image.

    - ``text`` is the question, without any words around it that a language model is given;
    - ``answers`` are those of ten people, or the right one alone; none if they are not published (a test part);
    - ``kind`` divides the figures coarsely: ``yes/no``, ``number``, ``colour``, ``shape``, ``other``;
    - ``image`` is the path of its image;
    - ``group`` divides the figures more finely, for example ``how many`` or ``10-19 objects``; "" does not;
    - ``rule`` says what of a model's text counts as its answer;
    - ``identifier`` is the question's number in VQAv2, elsewhere that of its image, as result files want it;
    - ``subject`` is the name of the object in question, "" if there is none;
    - ``objects`` is the number of annotated objects of the image, 0 if nobody counted them.
    """

    text: str
    answers: tuple[str, ...]
    kind: str
    image: str
    group: str = ""
    rule: Rule = "text"
    identifier: int | str = 0
    subject: str = ""
    objects: int = 0

    @property
    def has_votes(self) -> bool:
        """True if several people answered, as in VQAv2; their answers need not be alike."""
        return self.rule == "text" and len(self.answers) > 1

    @property
    def truth(self) -> str:
        """The right answer, or the commonest ones of several people with their numbers; "" if none is published."""
        if not self.has_votes:
            return "".join(self.answers)
        votes = Counter(" ".join(answer.split()) for answer in self.answers)
        return ", ".join(f"{answer} ({count})" for answer, count in votes.most_common(_NAMED_ANSWERS))


class QuestionSource(Source, Protocol):
    """A source of images in which an index is that of a question; it has neither labels nor classes.

    Several questions may share an image. ``load`` reads the image of a question; where :meth:`may_flip` is False it
    carries the mark that keeps :class:`ehm.data.train_transform.TrainTransform` from mirroring it.
    """

    def question(self, index: int) -> Question:
        """Return the question of this number."""
        ...

    @property
    def fingerprint(self) -> bytes:
        """A digest of all questions and answers, without their images."""
        ...

    def may_flip(self, index: int) -> bool:
        """Return whether the answer stays right if the image is mirrored left to right."""
        ...


def names_a_side(*texts: str) -> bool:
    """Return whether "left" or "right" begins a word of any of ``texts``, which a mirrored image makes wrong."""
    return any(map(_SIDES.search, texts))


def draw_answer(answers: tuple[str, ...], seed: int, epoch: int, index: int) -> str:
    """Return the answer to train on: one of ``answers``, drawn from (seed, epoch, index).

    Of ten people's answers each is as likely as it is frequent. Raises ValueError if there is none.
    """
    if not answers:
        raise ValueError("answers: a question without answers cannot be trained on")
    drawn = 0
    if len(answers) > 1:
        drawn = int(np.random.default_rng([_ANSWER_STREAM, seed, epoch, index]).integers(len(answers)))
    return " ".join(answers[drawn].split())  # some of VQAv2's answers have line ends
