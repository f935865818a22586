"""Small pictures that a run keeps for its report, and a JSON list with a row of facts about each.

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
"""The longest side of a kept picture in pixels: a file of about 8 KB."""


def save_pictures(folder: Path, name: str, rows: Sequence[tuple[Mapping[str, Any], Image.Image | None]]) -> Path:
    """Write ``rows`` of facts with their images into a folder of a run; those of an earlier measurement are replaced.

    In the written list, ``file`` of a row is the name of its picture. Rows without an image have none.
    """
    target = folder / name
    with replace_folder(target) as temporary, report_write_errors(target):
        listed = []
        for number, (row, image) in enumerate(rows):
            written = {key: _escape_text(value) for key, value in row.items()}
            if image is not None:
                written["file"] = f"{number:02d}.jpg"
                small = image.convert("RGB")
                small.thumbnail((_SIDE, _SIDE))
                small.save(temporary / written["file"], quality=85)
            listed.append(written)
        (temporary / f"{name}.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    return target


def read_pictures(folder: Path, name: str) -> list[tuple[dict[str, Any], Path | None]]:
    """Return the rows that a run keeps, with their pictures; empty if it keeps none or if the list is damaged."""
    list_file = folder / name / f"{name}.json"
    if not list_file.is_file():
        return []
    try:
        rows = read_json(list_file)
    except EhmError:  # a damaged list must not stop the rest of the report
        return []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return []
    found = []
    for row in rows:
        file = row.get("file")
        # only the last part of the path, so that nothing outside of the folder is read
        picture = folder / name / Path(file).name if isinstance(file, str) and file else None
        found.append((row, picture if picture is not None and picture.is_file() else None))
    return found


def _escape_text(value: Any) -> Any:
    """Return ``value``, if it is text, without bytes that are not UTF-8, which file names may have and JSON may not."""
    return escape_undecodable(value) if isinstance(value, str) else value
