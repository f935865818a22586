"""The worst mistakes of a classifier that a run keeps: small pictures with the true and the predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from ehm.report.kept_pictures import read_pictures, save_pictures

__all__ = ["MOST_MISTAKES", "Mistake", "read_mistakes", "save_mistakes"]

MOST_MISTAKES = 24
"""Mistakes that a run keeps, at most."""
_FOLDER = "mistakes"


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: the name of the ``image``, its class, the predicted class, and the probability of the latter.

    ``file`` is the picture in the folder, "" if the image could not be read again.
    """

    image: str
    true: str
    predicted: str
    confidence: float
    file: str = ""


def save_mistakes(folder: Path, mistakes: Sequence[tuple[Mistake, Image.Image | None]]) -> Path:
    """Write ``mistakes`` with their images into the folder of a run; those of an earlier measurement are replaced."""
    return save_pictures(folder, _FOLDER, [(asdict(mistake), image) for mistake, image in mistakes])


def read_mistakes(folder: Path) -> list[tuple[Mistake, Path | None]]:
    """Return the mistakes that a run keeps, worst first, with their pictures; empty if it keeps none."""
    try:
        return [(Mistake(**row), picture) for row, picture in read_pictures(folder, _FOLDER)]
    except TypeError:  # the list was altered
        return []
