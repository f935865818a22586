"""Embed pictures as data URIs, scaled down so that a report stays small."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from ehm.data import decode_image
from ehm.errors import BrokenImage

__all__ = ["Picture", "embed_file", "find_newest_pages"]

_PAGE_WIDTH = 1600
"""The largest width of a picture in pixels."""
_MOST_BYTES = 600_000
"""Pictures up to this size are embedded unchanged; larger ones become JPEGs."""
_QUALITY = 88
_MOST_PAGES = 6
_STEP = re.compile(r"(?P<name>.+)-(?P<step>\d{8})(?P<part>-\d+)?")
"""The name of a page that a run draws repeatedly: its kind, and the step after which it was drawn."""


@dataclass(frozen=True)
class Picture:
    """An embedded picture with its ``title`` and its size in pixels."""

    title: str
    uri: str
    width: int
    height: int


def embed_file(path: Path, title: str, most_bytes: int = _MOST_BYTES, most_width: int = _PAGE_WIDTH) -> Picture | None:
    """Return the picture in ``path``, reduced to the largest size and width; None if it cannot be read."""
    try:
        image = decode_image(path)
        content = path.read_bytes()
    except (BrokenImage, OSError):
        return None
    kind = {".png": "png", ".jpg": "jpeg"}.get(path.suffix)
    if kind is None or len(content) > most_bytes or image.width > most_width:
        if image.width > most_width:
            height = round(image.height * most_width / image.width)
            image = image.resize((most_width, max(1, height)), Image.Resampling.LANCZOS)
        stream = BytesIO()
        image.save(stream, "JPEG", quality=_QUALITY)
        content = stream.getvalue()
        kind = "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return Picture(title, uri, image.width, image.height)


def find_newest_pages(folder: Path) -> list[tuple[Path, int | None]]:
    """Return the pictures in ``folder``, each with the step in its name, None if there is none.

    Of a page that a run draws repeatedly, the newest one is taken.
    """
    newest: dict[str, int] = {}
    pages = []
    for path in sorted(folder.glob("*.png")):
        match = _STEP.fullmatch(path.stem)
        name = match["name"] if match else path.stem
        step = int(match["step"]) if match else None
        newest[name] = max(newest.get(name, 0), step or 0)
        pages.append((path, name, step))
    found = [(path, step) for path, name, step in pages if step in (None, newest[name])]
    return found[:_MOST_PAGES]
