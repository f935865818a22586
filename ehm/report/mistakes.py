"""The worst mistakes of a classifier, as its run keeps them: small pictures, and a list of what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from ehm.report.kept_pictures import read_pictures, save_pictures

__all__ = ["MOST_MISTAKES", "Mistake", "read_mistakes", "save_mistakes"]

MOST_MISTAKES = 24
"""Mistakes that a run keeps."""
_FOLDER = "mistakes"


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: the ``image`` by its name, its class, the one that was predicted, and the probability of that.

    ``file`` is the picture of it in the folder; empty if the image could not be read again.
    """

    image: str
    true: str
    predicted: str
    confidence: float
    file: str = ""


def save_mistakes(folder: Path, mistakes: Sequence[tuple[Mistake, Image.Image | None]]) -> Path:
    """Write ``mistakes`` with their images into the folder of a run, in place of those of an earlier measurement."""
    return save_pictures(folder, _FOLDER, [(asdict(mistake), image) for mistake, image in mistakes])


def read_mistakes(folder: Path) -> list[tuple[Mistake, Path | None]]:
    """Return the mistakes that a run keeps, worst first, with their pictures; none if it keeps none."""
    try:
        return [(Mistake(**row), picture) for row, picture in read_pictures(folder, _FOLDER)]
    except TypeError:  # a list that was altered
        return []
