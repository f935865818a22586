"""The section ``data``: where images come from, and how they are cropped and normalised."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from ehm.config.inputs import IMAGENET_MEAN, IMAGENET_STD, CropMode, InputSpec, Interpolation, Triple
from ehm.config.section import Section
from ehm.config.values import ClassName, Count, PixelRange, PositiveTriple, ShareRange, Unit

__all__ = ["DataConfig", "ImageData", "Layout", "PretrainData", "SourceConfig", "TableColumns"]

Layout = Literal[
    "auto", "classes", "elpv", "fashion-mnist", "folder", "gldv2", "idx", "imagenet", "parts", "shards", "table"
]
"""The layouts of images on disk that are read."""


class SourceConfig(Section):
    """``data`` of every task: where images come from and how their pixels are normalised."""

    source: str = Field(
        description="The images: elpv, fashion-mnist, a folder, the root of a data set, a table of paths, or tar "
        "shards (docs/data.md)."
    )
    range: PixelRange | None = Field(
        None,
        description="The values that are black and white in images of more than 8 bits, for example [0, 4095] for a "
        "12-bit camera whose files have 16 bits; null takes them from the type of the values.",
    )
    mean: Triple | None = Field(
        None,
        description="Mean of R, G and B that is subtracted, for values from 0 to 1; null takes that of the weights.",
    )
    std: PositiveTriple | None = Field(
        None,
        description="Standard deviation of R, G and B that is divided by, for values from 0 to 1; null takes that of "
        "the weights.",
    )
    workers: Count = Field(2, description="Number of processes that read images; 0 reads them in the training process.")
    strict: bool = Field(
        False, description="Whether an image that cannot be read ends the run instead of being replaced by another."
    )
    allow_empty_classes: bool = Field(
        False, description="Whether a task may start although a class of the data has no training images."
    )

    def input_spec(self, own: InputSpec) -> InputSpec:
        """Return ``own``, the preparation that belongs to the weights, with everything that this section sets."""
        changes = {}
        for name in vars(own):
            value = getattr(self, name, None)
            if value is not None:
                changes[name] = value
        return replace(own, **changes)


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


class ImageData(SourceConfig):
    """``data`` of single images: where they come from, and how training crops and varies them."""

    source: str = "elpv"
    layout: Layout = Field(
        "auto",
        description="How data.source is laid out on disk; parts or classes decides what the subfolders of a folder "
        "are if both are possible.",
    )
    images: str | None = Field(
        None, description="Folder that the paths of a table start from; null takes the folder of the table."
    )
    columns: TableColumns = TableColumns()
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] | None = Field(
        None,
        description="Names of the classes whose images are read, numbered in the order of the source; null takes all.",
    )
    crop_scale: ShareRange = Field(
        (0.2, 1), description="Smallest and largest area of a random crop in training, as a share of the image."
    )
    flip: bool = Field(True, description="Whether half of the training images are mirrored left to right.")
    color_jitter: Unit = Field(
        0.0, description="How far brightness, contrast and saturation vary in training, as a share of themselves."
    )


class DataConfig(ImageData):
    """``data`` of tasks that see an image in one crop; the words for resizing are timm's."""

    crop_pct: Annotated[float, Field(gt=0, le=2)] | None = Field(
        None,
        description="Size of the crop as a share of the size that an image is resized to when it is measured; null "
        "takes that of the weights.",
    )
    crop_mode: CropMode | None = Field(
        None,
        description="How an image is brought to the size of the crop: center cuts off what is over, squash changes "
        "the proportions, border fills with the mean; null takes that of the weights.",
    )
    interpolation: Interpolation | None = Field(
        None, description="How pixels are interpolated, in training too; null takes that of the weights."
    )


class PretrainData(ImageData):
    """``data`` of runs that need no weights: ``mean`` and ``std`` are ImageNet's unless they are set."""

    mean: Triple = Field(
        IMAGENET_MEAN, description="Mean of R, G and B that is subtracted, for values from 0 to 1; ImageNet's."
    )
    std: PositiveTriple = Field(
        IMAGENET_STD,
        description="Standard deviation of R, G and B that is divided by, for values from 0 to 1; ImageNet's.",
    )
