"""A card: the HTML by which a notebook shows a result; it loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ehm.report.chart import Chart
from ehm.report.embedding import Picture, embed_file
from ehm.report.next_steps import NextStep
from ehm.report.overview import Tile
from ehm.report.rendering import create_environment, read_template
from ehm.storage.names import escape_undecodable

__all__ = ["CaptionedPicture", "Card", "CardTable", "Cell", "embed_small", "embed_wide", "render_card"]

_MOST_BYTES = 150_000
"""Pictures up to this size are embedded unchanged; a notebook stores them all in its file."""
_MOST_SMALL_BYTES = 60_000
"""The same for pictures beside each other."""
_SMALL_WIDTH = 240
"""The width in pixels of a picture beside others."""


@dataclass(frozen=True)
class Cell:
    """The text of a cell of a table, above a bar for ``share``, in [0, 1], if that is not None."""

    text: str
    share: float | None = None


@dataclass(frozen=True)
class CardTable:
    """A table whose first column names its rows."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class CaptionedPicture:
    """A small picture with lines of text below it."""

    picture: Picture
    lines: Sequence[str]


@dataclass(frozen=True)
class Card:
    """The content of a card; empty parts are left out.

    ``status`` is a level, ``good`` or ``note``, and a text. The commands of ``next_steps`` are Python. ``wide`` are
    pictures as wide as the card, and ``small`` ones are shown side by side. ``places`` are titles and paths.
    """

    kind: str
    title: str = ""
    status: tuple[str, str] | None = None
    tiles: Sequence[Tile] = ()
    tables: Sequence[CardTable] = ()
    sentences: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    wide: Sequence[Picture] = ()
    small: Sequence[CaptionedPicture] = ()
    small_title: str = ""
    places: Sequence[tuple[str, Path]] = ()
    next_steps: Sequence[NextStep] = ()


def render_card(card: Card) -> str:
    """Return a card as HTML."""
    style = Markup(read_template("card.css"))  # not escaped, because it is a file of this package
    return escape_undecodable(create_environment().get_template("card.html").render(card=card, style=style))


def embed_wide(path: Path, title: str) -> Picture | None:
    """Return the picture in ``path``, as wide as a card at most; None if it cannot be read."""
    return embed_file(path, title, _MOST_BYTES)


def embed_small(path: Path, title: str) -> Picture | None:
    """Return the picture in ``path``, small enough for a card to have many; None if it cannot be read."""
    return embed_file(path, title, _MOST_SMALL_BYTES, _SMALL_WIDTH)
