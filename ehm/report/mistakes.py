"""The worst mistakes of a classifier, as its run keeps them: small pictures, and a list of what they are.

FOLDER/mistakes/mistakes.json, 00.jpg, 01.jpg, ...
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from ehm.errors import EhmError
from ehm.storage.names import escape_undecodable
from ehm.storage.reading import read_json
from ehm.storage.writing import replace_folder, report_write_errors

__all__ = ["MOST_MISTAKES", "Mistake", "read_mistakes", "save_mistakes"]

MOST_MISTAKES = 24
"""Mistakes that a run keeps."""
_FOLDER = "mistakes"
_LIST = "mistakes.json"
_SIDE = 224
"""Longest side of a kept picture in pixels: about 8 KB each."""


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
    target = folder / _FOLDER
    with replace_folder(target) as temporary, report_write_errors(target):
        rows = []
        for number, (mistake, image) in enumerate(mistakes):
            row = asdict(mistake)
            # names of files need not be UTF-8, and JSON is
            row["image"] = escape_undecodable(mistake.image)
            if image is not None:
                row["file"] = f"{number:02d}.jpg"
                small = image.convert("RGB")
                small.thumbnail((_SIDE, _SIDE))
                small.save(temporary / row["file"], quality=85)
            rows.append(row)
        (temporary / _LIST).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return target


def read_mistakes(folder: Path) -> list[tuple[Mistake, Path | None]]:
    """Return the mistakes that a run keeps, worst first, with their pictures; none if it keeps none."""
    list_file = folder / _FOLDER / _LIST
    if not list_file.is_file():
        return []
    try:
        rows = read_json(list_file)
        mistakes = [Mistake(**row) for row in rows]
    except (EhmError, TypeError):  # altered or damaged: the rest of a report is worth writing
        return []
    found = []
    for mistake in mistakes:
        # only its last part: whatever the list says, nothing outside of the folder is read
        picture = folder / _FOLDER / Path(mistake.file).name
        found.append((mistake, picture if mistake.file and picture.is_file() else None))
    return found
