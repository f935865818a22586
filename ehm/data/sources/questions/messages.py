"""Sentences about questions: what was recognised, and images that are not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ehm.data.questions import Question
from ehm.data.sources.inventory import list_names
from ehm.errors import DataError

__all__ = ["QuestionPart", "describe_questions", "require_images"]

QuestionPart = Literal["train", "validation"]
"""The parts of a set of questions: to train on, and to measure on."""
_NAMED = 3
"""Missing images that an error names."""


def describe_questions(layout: str, questions: Sequence[Question], part: str = "") -> str:
    """Return what was recognised: "easy-vqa, the test part: 9,673 questions about 1,000 images"."""
    images = len({each.image for each in questions})
    beginning = f"{layout}, {part}" if part else layout
    return f"{beginning}: {len(questions):,} questions about {images:,} images"


def require_images(file: Path, folder: Path, questions: Sequence[Question]) -> None:
    """Raise DataError if images of ``questions``, which are paths below ``folder``, are not there, or no question is.

    ``file`` is that of the questions.
    """
    if not questions:
        raise DataError(f"{file}: holds no questions")
    if not folder.is_dir():
        raise DataError(f"{file}: its images should lie in {folder}, and there is no such folder; images names another")
    missing = []
    for name in sorted({each.image for each in questions}):
        if not (folder / name).is_file():
            missing.append(name)
    if missing:
        raise DataError(
            f"{file}: {len(missing):,} of its images are not in {folder}: {list_names(missing, _NAMED)}; "
            "images names another folder"
        )
