"""The section ``data``: where images come from, and how they are cropped and normalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, model_validator

from ehm.config.inputs import IMAGENET_MEAN, IMAGENET_STD, CropMode, InputSpec, Interpolation, Means
from ehm.config.pixel_format import RGB_BYTES, Depth, PixelFormat
from ehm.config.section import Section
from ehm.config.sources import FurtherSource, Layout, TableColumns
from ehm.config.values import (
    Channels,
    ClassName,
    Count,
    NotNegative,
    PixelRange,
    PositiveReal,
    PositiveReals,
    ShareRange,
    Unit,
)
from ehm.errors import ConfigError

__all__ = [
    "DataConfig",
    "ImageData",
    "PretrainData",
    "SourceConfig",
    "refuse_colour_augmentations",
    "refuse_other_images",
    "require_photographs",
]


class SourceConfig(Section):
    """``data`` of every task: where images come from and how their pixels are normalised."""

    source: str = Field(
        description="The images: elpv, fashion-mnist, a folder, the root of a data set, a table of paths, tar shards, "
        "or the address of shards in a store (docs/data.md)."
    )
    range: PixelRange | None = Field(
        None,
        description="The values that are black and white in images of more than 8 bits, for example [0, 4095] for a "
        "12-bit camera whose files have 16 bits; null takes them from the type of the values.",
    )
    mean: Means | None = Field(
        None,
        description="Mean of each channel that is subtracted, for values from 0 to 1; null takes that of the weights.",
    )
    std: PositiveReals | None = Field(
        None,
        description="Standard deviation of each channel that is divided by, for values from 0 to 1; null takes that of "
        "the weights.",
    )
    workers: Count = Field(2, description="Number of processes that read images; 0 reads them in the training process.")
    strict: bool = Field(
        False, description="Whether an image that cannot be read ends the run instead of being replaced by another."
    )
    allow_empty_classes: bool = Field(
        False, description="Whether a task may start although a class of the data has no training images."
    )

    def complete_inputs(self, own: InputSpec) -> InputSpec:
        """Return ``own``, the preparation that belongs to the weights, with everything that this section sets.

        Raises ConfigError if the channels are others than those of the weights, and no mean is set for them.
        """
        changes: dict[str, Any] = {"pixels": self.complete_pixels(own.pixels).without_file_range}
        for name in vars(own):
            value = getattr(self, name, None)
            if value is not None and name != "pixels":
                changes[name] = value
        inputs = replace(own, **changes)
        for name in ("mean", "std"):
            values = getattr(inputs, name)
            if len(values) != inputs.pixels.count:
                raise ConfigError(
                    f"data.{name}: has {len(values)} values, and there are {inputs.pixels.count} channels; "
                    f"ehm data stats {self.source} measures them"
                )
        return inputs

    @property
    def wanted_channels(self) -> int | None:
        """Number of channels that the encoder is to have; None for that of the weights."""
        return None

    def complete_pixels(self, own: PixelFormat) -> PixelFormat:
        """Return the channels and the depth that this section asks for, and those of the weights, ``own``, otherwise.

        Only tasks that have the keys know other images than photographs.
        """
        return RGB_BYTES


class ImageData(SourceConfig):
    """``data`` of single images: where they come from, and how training crops and varies them."""

    source: str = "elpv"
    channels: Channels | None = Field(
        None,
        description="Channels of an image, as a number from 1 to 64 or by their names; 3 with depth 8 are photographs; "
        "null takes those of the weights.",
    )
    depth: Depth | None = Field(
        None,
        description="Depth that images are read in: 8 or 16 bits, or float, which needs data.range; null takes that of "
        "the weights.",
    )
    window: bool | None = Field(
        None,
        description="Whether the window that a DICOM file names is black and white, instead of data.range or all its "
        "bits; null as for depth.",
    )
    layout: Layout = Field(
        "auto",
        description="How data.source is laid out on disk; parts or classes decides what the subfolders of a folder "
        "are if both are possible.",
    )
    images: str | None = Field(
        None, description="Folder that the paths of a table start from; null takes the folder of the table."
    )
    columns: TableColumns = TableColumns()
    weight: PositiveReal = Field(
        1.0,
        description="Number of times that each image of data.source occurs in an epoch, beside those of data.sources.",
    )
    sources: tuple[FurtherSource, ...] = Field(
        (), description="Further sources, which are read together with data.source as one, each with its weight."
    )
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] | None = Field(
        None,
        description="Names of the classes whose images are read, numbered in the order of the source; null takes all.",
    )
    cache: NotNegative = Field(
        20.0,
        description="Largest size in gigabytes of the folder that keeps what is read from a store, if data.source is "
        "an address such as s3://bucket/folder; 0 keeps nothing.",
    )
    cache_folder: str | None = Field(
        None,
        description="Folder that keeps what is read from a store, on a disk of this machine; null takes "
        "~/.cache/ehm/stores.",
    )
    retries: Count = Field(
        5,
        description="Number of times that a read from a store that failed is tried again, after 0.5, 1, 2 seconds and "
        "so on.",
    )
    crop_scale: ShareRange = Field(
        (0.2, 1), description="Smallest and largest area of a random crop in training, as a share of the image."
    )
    flip: bool = Field(True, description="Whether half of the training images are mirrored left to right.")
    color_jitter: Unit = Field(
        0.0, description="How far brightness, contrast and saturation vary in training, as a share of themselves."
    )

    @model_validator(mode="after")
    def _check_sources(self) -> ImageData:
        if self.sources and self.classes is not None:
            raise ValueError("classes and sources exclude each other: leave classes out, or name one source alone")
        if self.weight != 1 and not self.sources:
            raise ValueError(f"weight {self.weight:g} is beside other sources; leave it 1, or name some in sources")
        return self

    @property
    def each_source(self) -> tuple[tuple[ImageData, float], ...]:
        """The configuration of each source by itself, with its weight; that of ``source`` comes first."""
        alone = self.model_copy(update={"sources": (), "weight": 1.0})
        found = [(alone, self.weight)]
        for each in self.sources:
            changes: dict[str, Any] = {"source": each.source, "layout": each.layout, "images": each.images}
            if each.columns is not None:
                changes["columns"] = each.columns
            found.append((alone.model_copy(update=changes), each.weight))
        return tuple(found)

    @model_validator(mode="after")
    def _check_format(self) -> ImageData:
        if self.depth == "float" and self.range is None:
            raise ValueError("depth float needs range, the values that become 0 and 1, for example range: [0, 1]")
        if self.window and self.range is not None:
            raise ValueError("window and range exclude each other: both say which values are black and white")
        if self.channels is not None:
            for name, values in (("mean", self.mean), ("std", self.std)):
                if values is not None and len(values) != self.pixels.count:
                    raise ValueError(
                        f"data.{name}: has {len(values)} values, and there are {self.pixels.count} channels; "
                        f"ehm data stats {self.source} measures them"
                    )
        return self

    @property
    def wanted_channels(self) -> int | None:
        """See :attr:`SourceConfig.wanted_channels`."""
        return None if self.channels is None else self.pixels.count

    @property
    def pixels(self) -> PixelFormat:
        """The channels and the depth of images; those of photographs where the weights decide."""
        return self.complete_pixels(RGB_BYTES)

    def complete_pixels(self, own: PixelFormat) -> PixelFormat:
        """See :meth:`SourceConfig.complete_pixels`."""
        channels = own.channels if self.channels is None else self.channels
        depth = own.depth if self.depth is None else self.depth
        if self.range is not None:
            return PixelFormat(channels, depth, self.range)
        window = own.window if self.window is None else self.window
        return PixelFormat(channels, depth, None if window else own.range, window)


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

    channels: Channels = Field(
        3,
        description="Channels of an image, as a number from 1 to 64 or by their names; 3 with depth 8 are photographs.",
    )
    depth: Depth = Field(
        8, description="Depth that images are read in: 8 or 16 bits, or float, which needs data.range."
    )
    window: bool = Field(
        False,
        description="Whether the window that a DICOM file names is black and white, instead of data.range or all its "
        "bits.",
    )
    mean: Means = Field(
        IMAGENET_MEAN,
        description="Mean of each channel that is subtracted, for values from 0 to 1; ehm data stats measures it.",
    )
    std: PositiveReals = Field(
        IMAGENET_STD,
        description="Standard deviation of each channel that is divided by, for values from 0 to 1; ehm data stats "
        "measures it.",
    )

    @property
    def inputs(self) -> InputSpec:
        """The preparation of images for the encoder that is pretrained."""
        return InputSpec(self.mean, self.std, pixels=self.pixels.without_file_range)


def refuse_colour_augmentations(pixels: PixelFormat, settings: Mapping[str, Any]) -> None:
    """Raise ValueError, which names the key, if one of ``settings`` varies colours and images have none.

    They are augmentations of R, G and B in 8 bits, by the keys that switch them on.
    """
    chosen = [key for key, value in settings.items() if value]
    if chosen and not pixels.is_rgb:
        off = "0" if chosen[0] == "data.color_jitter" else "null"
        raise ValueError(
            f"{chosen[0]}: varies the colours of photographs, and images have {pixels.describe()}; set it to {off}"
        )


def refuse_other_images(task: str, init: str, pixels: PixelFormat) -> None:
    """Raise ConfigError if the weights ``init`` are for images of ``pixels`` that ``task`` does not take."""
    if task != "classification" and not pixels.is_rgb:
        raise ConfigError(
            f"model.init {init}: is for images of {pixels.describe()}, and task {task} takes photographs of 3 channels "
            "and 8 bits"
        )


def require_photographs(data: ImageData, what: str) -> None:
    """Raise ValueError, which says that ``what`` needs them, if images are not of three channels and 8 bits."""
    if not data.pixels.is_rgb:
        raise ValueError(f"data.channels and data.depth: {what} takes photographs of 3 channels and 8 bits")
