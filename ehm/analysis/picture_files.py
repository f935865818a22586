"""The pictures that a function has written, which a notebook shows."""

from __future__ import annotations

from pathlib import Path

from ehm.report.card import Card, embed_wide, render_card

__all__ = ["PictureFiles"]


class PictureFiles(list[Path]):
    """A list of files, which a notebook shows as pictures if they are some."""

    def _repr_html_(self) -> str:
        pictures = []
        others = []
        for path in self:
            picture = embed_wide(path, str(path)) if path.suffix == ".png" else None
            if picture is None:
                others.append(("File", path))
            else:
                pictures.append(picture)
        return render_card(Card(kind="Pictures", wide=pictures, places=others))
