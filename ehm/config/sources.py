"""The parts of ``data`` that say how sources are laid out: layouts, columns of tables, and further sources."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ehm.config.section import Section
from ehm.config.values import PositiveReal

__all__ = ["FurtherSource", "Layout", "TableColumns"]

Layout = Literal[
    "auto", "classes", "elpv", "fashion-mnist", "folder", "gldv2", "idx", "imagenet", "parts", "rows", "shards",
    "store", "table",
]  # fmt: skip
"""The layouts of images on disk that are read."""


class TableColumns(Section):
    """``data.columns``: the columns of a table of images (docs/data.md#tables)."""

    path: str = Field(
        "path", description="Name of the column with the path of each image, for a data.source that is a table."
    )
    suffix: str = Field(
        "", description="Text that is put behind each path, such as .png for a column of names without a suffix."
    )
    label: str | Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        None,
        description="Name of the column with the class of each image, or a list of columns of 0 and 1, one for each of "
        "several labels; null takes the column label if there is one.",
    )
    separator: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Text between several labels in one cell, such as a semicolon; null takes a cell for one class.",
    )
    split: str | None = Field(
        None,
        description="Name of the column that says which part an image belongs to, train, val or test; null takes the "
        "column split if there is one.",
    )
    group: str | None = Field(
        None,
        description="Name of the column with the group of each image, such as its patient, which is never split "
        "between training and validation.",
    )


class FurtherSource(Section):
    """One of ``data.sources``: images that are read beside those of ``data.source`` (docs/data.md#several-sources)."""

    source: str = Field(description="The images, as for data.source.")
    layout: Layout = Field("auto", description="How they are laid out, as for data.layout.")
    images: str | None = Field(None, description="Folder that the paths of a table start from, as for data.images.")
    columns: TableColumns | None = Field(
        None, description="The columns of a table, as for data.columns; null takes those of data.columns."
    )
    weight: PositiveReal = Field(
        1.0, description="Number of times that each of its images occurs in an epoch; 0.1 takes a tenth of them."
    )
