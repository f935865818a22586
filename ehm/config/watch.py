"""``watch``: what is looked at while a run pretrains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ehm.config.section import Section
from ehm.config.sources import Layout
from ehm.config.values import NotNegative

__all__ = ["WatchConfig", "WatchFigure"]

WatchFigure = Literal["knn", "linear", "rankme"]


class WatchConfig(Section):
    """``watch``: figures of the features and pictures while a run pretrains (docs/watch.md)."""

    every: NotNegative | None = Field(
        None,
        description="Number of epochs from one measurement of the features to the next; 0 measures nothing, null "
        "measures at the end and as often as costs less than 3 % of the time.",
    )
    source: str | None = Field(
        None,
        description="Images to measure on, best with labels: whatever data.source takes; null takes the training "
        "source's own validation part, or its images if it has none.",
    )
    layout: Layout = Field("auto", description="How watch.source is laid out on disk, as for data.layout.")
    images: Annotated[int, Field(ge=10)] = Field(
        2000, description="Largest number of images to measure on, the same ones every time."
    )
    figure: WatchFigure | None = Field(
        None,
        description="Figure by which the best checkpoint is kept; null takes knn if there are labels, and keeps none "
        "if there are not.",
    )
    pictures: NotNegative | None = Field(
        None,
        description="Number of epochs from one page of reconstructions to the next; 0 draws none, null draws one at "
        "the end and up to nine before, as long as those take less than 1.5 % of the time.",
    )

    @model_validator(mode="after")
    def _check_together(self) -> WatchConfig:
        if self.layout != "auto" and self.source is None:
            raise ValueError(f"layout {self.layout}: is that of watch.source, which is not set")
        return self
