"""Small pictures that a run keeps for its report, and a list of what is said of each.

FOLDER/NAME/NAME.json, 00.jpg, 01.jpg, ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ehm.errors import EhmError
from ehm.storage.names import escape_undecodable
from ehm.storage.reading import read_json
from ehm.storage.writing import replace_folder, report_write_errors

__all__ = ["read_pictures", "save_pictures"]

_SIDE = 224
"""Longest side of a kept picture in pixels: about 8 KB each."""


def save_pictures(folder: Path, name: str, rows: Sequence[tuple[Mapping[str, Any], Image.Image | None]]) -> Path:
    """Write ``rows`` with their images into a folder of a run, in place of those of an earlier measurement.

    In the list ``file`` of a row is its picture, which an image that could not be read does not have.
    """
    target = folder / name
    with replace_folder(target) as temporary, report_write_errors(target):
        listed = []
        for number, (row, image) in enumerate(rows):
            written = {key: _clean(value) for key, value in row.items()}
            if image is not None:
                written["file"] = f"{number:02d}.jpg"
                small = image.convert("RGB")
                small.thumbnail((_SIDE, _SIDE))
                small.save(temporary / written["file"], quality=85)
            listed.append(written)
        (temporary / f"{name}.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    return target


def read_pictures(folder: Path, name: str) -> list[tuple[dict[str, Any], Path | None]]:
    """Return the rows that a run keeps with their pictures; none if it keeps none, or if the list is damaged."""
    list_file = folder / name / f"{name}.json"
    if not list_file.is_file():
        return []
    try:
        rows = read_json(list_file)
    except EhmError:  # altered or damaged: the rest of a report is worth writing
        return []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return []
    found = []
    for row in rows:
        file = row.get("file")
        # only its last part: whatever the list says, nothing outside of the folder is read
        picture = folder / name / Path(file).name if isinstance(file, str) and file else None
        found.append((row, picture if picture is not None and picture.is_file() else None))
    return found


def _clean(value: Any) -> Any:
    # names of files need not be UTF-8, and JSON is
    return escape_undecodable(value) if isinstance(value, str) else value
