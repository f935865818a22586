"""The pictures that a function has written, which a notebook shows."""

from __future__ import annotations

from pathlib import Path

from ehm.report.card import Card, embed_wide, render_card

__all__ = ["PictureFiles"]


class PictureFiles(list[Path]):
    """A list of files; those that are pictures are shown in a notebook."""

    def _repr_html_(self) -> str:
        pictures = []
        for path in self:
            picture = embed_wide(path, path.name) if path.suffix == ".png" else None
            if picture is not None:
                pictures.append(picture)
        return render_card(Card(kind="Pictures", wide=pictures, places=[("File", path) for path in self]))
