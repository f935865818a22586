"""Examples of answers of a vision-language model that a run keeps: small pictures, questions, answers and truths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from ehm.report.kept_pictures import read_pictures, save_pictures

__all__ = ["MOST_ANSWERS", "ShownAnswer", "read_answers", "save_answers"]

MOST_ANSWERS = 24
"""Answers that a run keeps, at most."""
_FOLDER = "answers"


@dataclass(frozen=True)
class ShownAnswer:
    """A ``question`` about an ``image``, the answer that was ``given``, and the ``truth``, "" if it is not published.

    ``score`` is in [0, 1], None without a truth. ``blank`` is the answer to the same question about a blank image, None
    if that was not asked. ``file`` is the picture in the folder, "" if the image could not be read again.
    """

    image: str
    kind: str
    question: str
    given: str
    truth: str
    score: float | None = None
    blank: str | None = None
    file: str = ""


def save_answers(folder: Path, answers: Sequence[tuple[ShownAnswer, Image.Image | None]]) -> Path:
    """Write ``answers`` with their images into the folder of a run; those of an earlier measurement are replaced."""
    return save_pictures(folder, _FOLDER, [(asdict(answer), image) for answer, image in answers])


def read_answers(folder: Path) -> list[tuple[ShownAnswer, Path | None]]:
    """Return the answers that a run keeps, with their pictures; empty if it keeps none."""
    try:
        return [(ShownAnswer(**row), picture) for row, picture in read_pictures(folder, _FOLDER)]
    except TypeError:  # the list was altered
        return []
