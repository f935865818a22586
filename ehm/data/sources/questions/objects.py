"""Questions that are made of annotated objects: how many there are of a kind, and whether one is there.

The rules are those of GVTBench, as far as its files tell: counts go from 1 to 9; half of the questions about existence
are true, with objects as they occur, and half are false, with any object as likely as any other.

m is the number of images, C that of the names of objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ehm.data.questions import Question
from ehm.data.sources.base import Split
from ehm.data.sources.questions.drawing import DRAWING_SEED, draw_limited
from ehm.errors import DataError
from ehm.installation import build_install_command

__all__ = [
    "LARGEST_COUNT",
    "AnnotatedObjects",
    "ObjectCounts",
    "ask_count",
    "ask_existence",
    "make_count_questions",
    "make_existence_questions",
]

LARGEST_COUNT = 9
"""Objects that a question may count, at most."""
# divisions of the figures, of which each group has enough questions
_COUNT_GROUPS = ((2, "0-2"), (5, "3-5"), (8, "6-8"))
_OBJECT_GROUPS = ((9, "fewer than 10 objects"), (19, "10-19 objects"))


@dataclass(frozen=True)
class ObjectCounts:
    """The objects of images: ``counts`` (m, C) of each of ``names``, in ``files`` with their ``identifiers``.

    ``crowded`` (m, C) is True where annotations may stand for many objects each, so that they cannot be counted.
    """

    files: Sequence[str]
    identifiers: Sequence[int | str]
    names: Sequence[str]
    counts: NDArray[np.int32]
    crowded: NDArray[np.bool_]

    @property
    def totals(self) -> NDArray[np.int64]:
        """Annotated objects of each image: (m,)."""
        totals: NDArray[np.int64] = self.counts.sum(axis=1)
        return totals


@dataclass(frozen=True)
class AnnotatedObjects:
    """The objects of the part ``split``, as ``file`` has them; images are below ``folder``; ``title`` names it all."""

    objects: ObjectCounts
    folder: Path
    split: Split
    title: str
    file: Path


def ask_count(
    plural: str, count: str, file: str, identifier: int | str, objects: int, subject: str | None = None
) -> Question:
    """Return the question how many objects there are; ``plural`` is their name in the plural."""
    return Question(
        f"How many {plural} are there in the image?",
        (count,),
        "number",
        file,
        _find_group(int(count), _COUNT_GROUPS, "9 or more"),
        "number",
        identifier,
        plural if subject is None else subject,
        objects,
    )


def ask_existence(name: str, is_there: bool, file: str, identifier: int | str, objects: int) -> Question:
    """Return the question whether an object is in the image."""
    return Question(
        f"Does {name} exist in the image?",
        ("Yes" if is_there else "No",),
        "yes/no",
        file,
        _find_group(objects, _OBJECT_GROUPS, "20 or more objects"),
        "yes_no",
        identifier,
        name,
        objects,
    )


def make_count_questions(objects: ObjectCounts, limit: int | None) -> list[Question]:
    """Return a question for each image and kind of object of which it has 1 to 9, or ``limit`` of these."""
    can_be_counted = (objects.counts >= 1) & (objects.counts <= LARGEST_COUNT) & ~objects.crowded
    plurals = _list_plurals(objects.names)
    totals = objects.totals.tolist()
    questions = []
    for image, name in draw_limited(np.argwhere(can_be_counted).tolist(), limit):
        questions.append(
            ask_count(
                plurals[name],
                str(int(objects.counts[image, name])),
                objects.files[image],
                objects.identifiers[image],
                totals[image],
                objects.names[name],
            )
        )
    return questions


def make_existence_questions(objects: ObjectCounts, limit: int | None) -> list[Question]:
    """Return as many true as false questions, ``limit`` in all or as many as there are; none comes twice.

    True ones are about an image and an object that it has, drawn uniformly; of false ones the object is drawn uniformly
    among all, then an image without it.
    """
    is_there = objects.counts > 0
    present = np.argwhere(is_there)
    each = min(len(present), int((~is_there).sum()))
    if limit is not None:
        each = min(each, limit // 2)
    rng = np.random.default_rng(DRAWING_SEED)
    chosen = [*rng.choice(present, each, replace=False).tolist(), *_draw_absent(is_there, each, rng)]
    totals = objects.totals.tolist()
    questions = []
    # questions about the same image stand together, whose file is then read from memory
    for image, name in sorted(chosen):
        questions.append(
            ask_existence(
                objects.names[name],
                bool(is_there[image, name]),
                objects.files[image],
                objects.identifiers[image],
                totals[image],
            )
        )
    return questions


def _draw_absent(is_there: NDArray[np.bool_], wanted: int, rng: np.random.Generator) -> list[list[int]]:
    """Draw ``wanted`` pairs of an image and an object that it lacks, each object as often as any other if it can be."""
    absent = [np.flatnonzero(~column) for column in is_there.T]
    left = np.array([len(images) for images in absent])
    drawn = np.zeros(len(left), np.int64)
    while drawn.sum() < wanted:
        # an object of which no image is left gives its share to the others
        shares = (drawn < left) / np.count_nonzero(drawn < left)
        drawn = np.minimum(drawn + rng.multinomial(wanted - drawn.sum(), shares), left)
    pairs = []
    for name, (images, count) in enumerate(zip(absent, drawn.tolist(), strict=True)):
        for image in rng.choice(images, count, replace=False).tolist():
            pairs.append([image, name])
    return pairs


def _find_group(number: int, groups: Sequence[tuple[int, str]], others: str) -> str:
    for last, title in groups:
        if number <= last:
            return title
    return others


def _list_plurals(names: Sequence[str]) -> list[str]:
    try:
        engine = import_module("inflect").engine()
    except ImportError:
        raise DataError(
            "questions: count: the plurals of names are made by inflect; "
            f"{build_install_command('language')} installs it"
        ) from None
    return [engine.plural(name) for name in names]
