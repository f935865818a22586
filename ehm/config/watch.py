"""``watch``: what is looked at while a run pretrains."""

from __future__ import annotations

from pydantic import Field

from ehm.config.section import Section
from ehm.config.values import NotNegative

__all__ = ["WatchConfig"]


class WatchConfig(Section):
    """``watch``: figures and pictures while a run pretrains (docs/watch.md)."""

    pictures: NotNegative | None = Field(
        None,
        description="Number of epochs from one page of reconstructions to the next; 0 draws none, null draws one at "
        "the end and up to nine before, as long as those take less than 1.5 % of the time.",
    )
