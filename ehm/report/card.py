"""A card: what a notebook shows of a result, as a piece of HTML that loads nothing and runs no script."""

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
"""Size up to which a picture of a card is embedded as it is: a notebook keeps every one in its file."""
_MOST_SMALL_BYTES = 60_000
_SMALL_WIDTH = 240
"""Pixels across of a picture that stands beside others."""


@dataclass(frozen=True)
class Cell:
    """The text of a cell of a table; ``share`` from 0 to 1 is drawn as a bar below it."""

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
    """The content of a card; what is empty is left out.

    ``status`` is a level, ``good`` or ``note``, and a text. The commands of ``next_steps`` are Python. ``wide`` are
    pictures as wide as the card, ``small`` ones stand side by side.
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
    style = Markup(read_template("card.css"))  # our own file, which is no text of users
    return escape_undecodable(create_environment().get_template("card.html").render(card=card, style=style))


def embed_wide(path: Path, title: str) -> Picture | None:
    """Return the picture in ``path``, as wide as a card at most; None if it cannot be read."""
    return embed_file(path, title, _MOST_BYTES)


def embed_small(path: Path, title: str) -> Picture | None:
    """Return the picture in ``path`` in a size of which a card can have many; None if it cannot be read."""
    return embed_file(path, title, _MOST_SMALL_BYTES, _SMALL_WIDTH)
