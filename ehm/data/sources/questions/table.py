"""Questions in columns: of millions of questions each distinct text is kept once, and workers get small copies.

n is the number of questions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.decoding.decode import decode_image
from ehm.data.decoding.depth import ValueRange
from ehm.data.questions import Question, Rule, names_a_side
from ehm.data.sources.base import Names, Split, WithoutClasses
from ehm.data.transforms import MAY_FLIP
from ehm.storage.names import escape_undecodable

__all__ = ["Column", "QuestionTable", "tabulate_questions"]


class Column:
    """A list of strings, each distinct one kept once."""

    def __init__(self, values: Iterable[str]) -> None:
        numbers: dict[str, int] = {}
        codes = [numbers.setdefault(value, len(numbers)) for value in values]
        self.distinct = Names(numbers)
        self.codes = np.array(codes, np.int32)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> str:
        return self.distinct[int(self.codes[index])]


@dataclass(frozen=True)
class QuestionTable(WithoutClasses):
    """Questions with images below ``root``: a :class:`ehm.data.questions.QuestionSource`.

    ``answers`` are lists in JSON, as people gave them; ``identifiers`` (n,) are numbers, or strings in a column;
    ``objects`` (n,) are counts.
    """

    root: Path
    texts: Column
    answers: Column
    kinds: Column
    images: Column
    groups: Column
    rules: Column
    subjects: Column
    identifiers: Column | NDArray[np.int64]
    objects: NDArray[np.int32]
    split: Split
    _: KW_ONLY
    notes: tuple[str, ...] = ()
    value_range: ValueRange = None

    def __len__(self) -> int:
        return len(self.texts)

    def question(self, index: int) -> Question:
        """Return the question of this number."""
        identifier = self.identifiers[index]
        return Question(
            text=self.texts[index],
            answers=tuple(json.loads(self.answers[index])),
            kind=self.kinds[index],
            image=self.name(index),
            group=self.groups[index],
            rule=cast(Rule, self.rules[index]),
            identifier=identifier if isinstance(identifier, str) else int(identifier),
            subject=self.subjects[index],
            objects=int(self.objects[index]),
        )

    def load(self, index: int) -> Image.Image:
        """Read the image of a question in RGB, with the mark that it may not be flipped where that is so."""
        image = decode_image(self.name(index), value_range=self.value_range)
        if not self.may_flip(index):
            image.info[MAY_FLIP] = False
        return image

    def name(self, index: int) -> str:
        """Return the path of the image of a question."""
        return os.path.join(self.root, self.images[index])

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of all questions and answers, without their images."""
        digest = hashlib.sha256()
        for column in (self.texts, self.answers):
            digest.update(column.codes.astype("<i4").tobytes())
            for number in range(len(column.distinct)):
                digest.update(os.fsencode(column.distinct[number]) + b"\0")
        return digest.digest()

    def may_flip(self, index: int) -> bool:
        """Return whether neither the question nor any of its answers says left or right."""
        return not names_a_side(self.texts[index], self.answers[index])


def tabulate_questions(
    root: Path, questions: Sequence[Question], split: Split, notes: Iterable[str] = ()
) -> QuestionTable:
    """Return ``questions``, whose images are paths below ``root``, as a source."""
    identifiers: Column | NDArray[np.int64]
    if all(isinstance(each.identifier, int) and abs(each.identifier) < 2**63 for each in questions):
        identifiers = np.array([each.identifier for each in questions], np.int64)
    else:
        identifiers = Column(str(each.identifier) for each in questions)
    return QuestionTable(
        root,
        texts=Column(_clean(each.text) for each in questions),
        answers=Column(json.dumps(each.answers) for each in questions),
        kinds=Column(_clean(each.kind) for each in questions),
        images=Column(each.image for each in questions),
        groups=Column(_clean(each.group) for each in questions),
        rules=Column(each.rule for each in questions),
        subjects=Column(_clean(each.subject) for each in questions),
        identifiers=identifiers,
        objects=np.array([each.objects for each in questions], np.int32),
        split=split,
        notes=tuple(notes),
    )


def _clean(text: str) -> str:
    """Return ``text`` on one line, with what cannot be written as UTF-8 escaped."""
    return escape_undecodable(" ".join(text.split()))
