"""``ehm finetune --task segmentation``: the configuration of UperNet."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ehm.config.data import SourceConfig
from ehm.config.section import Section
from ehm.config.sections import ModelSource, OptimConfig
from ehm.config.tasks.base import TaskConfig
from ehm.config.values import BelowOne, Count, ImageSize, NotNegative, Positive, PositiveRange, Share

__all__ = ["SegmentationConfig", "SegmentationData", "SlideConfig", "UperNetConfig"]


class SegmentationData(SourceConfig):
    """``data`` of segmentation: ADE20K's folder, or any folder of images and masks (docs/segmentation.md)."""

    source: str = "ADEChallengeData2016"
    layout: Literal["auto", "ade20k", "pairs"] = Field("auto", description="How data.source is laid out on disk.")
    annotated: Literal["auto", "stored", "upright"] = Field(
        "auto",
        description="Whether masks without an orientation of their own were drawn on the stored pixels of images that "
        "EXIF turns or on the images upright; auto finds out from the sizes if they tell.",
    )
    scale: tuple[Positive, Positive] | None = Field(
        (2048, 512),
        description="Longest and shortest side in pixels that an image is fitted into, proportions kept; null keeps "
        "its size.",
    )
    ratio: PositiveRange = Field(
        (0.5, 2.0), description="Smallest and largest factor of data.scale, which each training image draws from."
    )
    max_share: Share = Field(
        0.75, description="Largest share of a training crop that one class may have, if ten tries find such a crop."
    )
    flip: bool = Field(True, description="Whether half of the training images are mirrored left to right.")
    photometric: bool = Field(
        True, description="Whether training images vary in brightness, contrast, saturation and hue."
    )
    check: bool = Field(True, description="Whether every mask is read before the first step.")


class UperNetConfig(Section):
    """``head``: UperNet (Xiao et al., 2018) and its auxiliary head, which is trained on the third level."""

    channels: Positive = Field(512, description="Number of features of the head.")
    dropout: BelowOne = Field(0.1, description="Share of the features that are left out in training.")
    auxiliary_weight: NotNegative = Field(0.4, description="Weight of the auxiliary loss; 0 leaves that head out.")
    auxiliary_channels: Positive = Field(256, description="Number of features of the auxiliary head.")
    taps: tuple[Count, ...] | None = Field(
        None,
        min_length=4,
        max_length=4,
        description="The four blocks of a ViT that the head builds on, from 0; null takes 3, 5, 7 and 11 of 12.",
    )


class SlideConfig(Section):
    """``inference``: how an image of any size is segmented."""

    mode: Literal["whole", "slide"] = Field(
        "slide", description="Whether an image is segmented as a whole or in windows of crop_size."
    )
    stride: Positive | None = Field(
        None, description="Distance in pixels from one window to the next; null takes two thirds of crop_size."
    )


class SegmentationConfig(TaskConfig):
    """Training of UperNet. The defaults are mmsegmentation's recipe for MAE's ViT-B on ADE20K.

    ``model.image_size`` resamples a ViT's positions once, for all sizes. If the source has no validation part, the fold
    is drawn at random, the same for every seed.
    """

    task: Literal["segmentation"] = "segmentation"
    model: ModelSource = ModelSource(drop_path=0.1)
    data: SegmentationData = SegmentationData()
    crop_size: ImageSize = Field(
        (512, 512), description="Height and width of a training crop in pixels, multiples of 32; one number: a square."
    )
    head: UperNetConfig = UperNetConfig()
    inference: SlideConfig = SlideConfig()
    optim: OptimConfig = OptimConfig(
        steps=160_000, batch_size=16, base_lr=1.6e-3, warmup_steps=1500, schedule="linear", betas=(0.9, 0.999)
    )
    layer_decay: Share = 0.65
    optimizer: Literal["adamw", "sgd"] = "adamw"

    @model_validator(mode="after")
    def _check_together(self) -> SegmentationConfig:
        if any(side % 32 for side in self.crop_size):
            raise ValueError(f"crop_size {list(self.crop_size)} is not a multiple of 32, the widest stride")
        stride = self.inference.stride
        if stride is not None and stride > min(self.crop_size):
            raise ValueError(
                f"inference.stride {stride} is wider than crop_size {list(self.crop_size)}: "
                "pixels between two windows would have no answer"
            )
        if self.run.parallel == "fsdp":
            raise ValueError("run.parallel fsdp: segmentation trains with ddp only")
        return self

    @property
    def stride(self) -> tuple[int, int]:
        """Distance from one window of inference to the next, down and across, in pixels."""
        if self.inference.stride is not None:
            return self.inference.stride, self.inference.stride
        height, width = self.crop_size
        return height * 2 // 3, width * 2 // 3
