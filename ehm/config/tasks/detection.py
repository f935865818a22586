"""``ehm finetune --task detection``: the configuration of Mask R-CNN."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ehm.config.data import SourceConfig
from ehm.config.sections import ModelSource, OptimConfig
from ehm.config.tasks.base import TaskConfig
from ehm.config.values import BelowOne, Positive

__all__ = ["DetectionConfig", "DetectionData"]


def _expand_number(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


class DetectionData(SourceConfig):
    """``data`` of detection: a folder in COCO's or YOLO's format (docs/detection.md)."""

    source: str = "coco"
    layout: Literal["auto", "coco", "coco2014", "coco2017", "instances", "yolo"] = Field(
        "auto", description="How data.source is laid out on disk."
    )
    annotated: Literal["auto", "stored", "upright"] = Field(
        "auto",
        description="Whether boxes and masks were drawn on the stored pixels of images that EXIF turns (COCO's "
        "convention) or on the images upright; auto finds out from the sizes if they tell.",
    )
    flip: bool = Field(True, description="Whether half of the training images are mirrored left to right.")


class DetectionConfig(TaskConfig):
    """Mask R-CNN on the encoder's maps at strides 4, 8, 16 and 32 (paper, V-B). The defaults are the 1x schedule.

    Encoders that take one size only (Swin, relative positions) get that of ``model.image_size``, a square: images are
    fitted into it and padded. Folds hold out images.
    """

    task: Literal["detection"] = "detection"
    model: ModelSource = ModelSource(drop_path=0.1)
    data: DetectionData = DetectionData()
    optim: OptimConfig = OptimConfig(
        epochs=12,
        batch_size=16,
        base_lr=1.6e-3,
        warmup_epochs=0,
        warmup_steps=500,
        schedule="step",
        milestones=(0.6666667, 0.9166667),  # epochs 8 and 11 of 12
        betas=(0.9, 0.999),
    )
    optimizer: Literal["adamw"] = "adamw"
    min_size: Annotated[tuple[Positive, ...], Field(min_length=1), BeforeValidator(_expand_number)] = Field(
        (800,),
        description="Length in pixels that the shorter side is resized to; of several, each training image draws one, "
        "and the last one measures.",
    )
    max_size: Positive = Field(1333, description="Largest length in pixels of the longer side after resizing.")
    masks: bool = Field(True, description="Whether masks are learnt; false trains Faster R-CNN on boxes alone.")
    anchor_sizes: tuple[Positive, Positive, Positive, Positive, Positive] = Field(
        (32, 64, 128, 256, 512), description="Sides in pixels of the anchor boxes at the strides 4 to 64."
    )
    width: Positive = Field(256, description="Number of features of the pyramid and of the heads.")
    proposals: Positive = Field(512, description="Number of proposals of an image that train the heads in a step.")
    detections: Positive = Field(100, description="Largest number of detections in an image.")
    score_threshold: BelowOne = Field(0.05, description="Lowest score of a detection.")

    @model_validator(mode="after")
    def _check_sizes(self) -> DetectionConfig:
        if max(self.min_size) > self.max_size:
            raise ValueError(f"min_size {max(self.min_size)} is more than max_size {self.max_size}")
        return self
