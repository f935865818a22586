"""What a configuration of a downstream task may say: supervised training from an encoder, and how it is measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ehm.config.sections import (
    DataConfig,
    ImageSize,
    ModelSource,
    OptimConfig,
    Positive,
    PositiveReal,
    RunConfig,
    Section,
    Share,
    SourceConfig,
    Unit,
    rising,
)

__all__ = [
    "TASKS",
    "AugmentConfig",
    "DetectionConfig",
    "DetectionData",
    "FinetuneConfig",
    "ProbeConfig",
    "RetrievalConfig",
    "SegmentationConfig",
    "SegmentationData",
    "SlideConfig",
    "TaskConfig",
    "UperNetConfig",
]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


class AugmentConfig(Section):
    """``augment``: MAE's fine-tuning recipe. ``rand_augment`` is timm's string; ``null`` switches it off."""

    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    mixup: Annotated[float, Field(ge=0)] = 0.8
    cutmix: Annotated[float, Field(ge=0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    random_erasing: Unit = 0.25


class TaskConfig(Section):
    """What every task has.

    ``fold`` of ``folds`` parts is held out where the source has no validation split of its own. The parameters of a
    layer learn at ``layer_decay`` times the rate of the layer above.
    """

    task: str
    model: ModelSource
    data: SourceConfig
    optim: OptimConfig
    layer_decay: Share = 1.0
    optimizer: Literal["adamw", "lars", "sgd"] = "adamw"
    folds: Annotated[int, Field(ge=2)] = 5
    fold: Annotated[int, Field(ge=0)] = 0
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _possible(self) -> TaskConfig:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: with folds {self.folds} it is 0 to {self.folds - 1}")
        if self.optim.ema_decay is not None:
            raise ValueError("optim.ema_decay: only pretraining has a moving average; leave it out")
        return self


class FinetuneConfig(TaskConfig):
    """Supervised training of a classifier. The defaults are MAE's published recipe for ViT-B.

    The folds are stratified. ``pool`` is what the head sees: the mean of the patch tokens, or the class token.
    """

    task: Literal["classification"] = "classification"
    model: ModelSource = ModelSource(drop_path=0.1)
    data: DataConfig = DataConfig(crop_scale=(0.08, 1))
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig(
        epochs=100, batch_size=1024, base_lr=5e-4, min_lr=1e-6, warmup_epochs=5, betas=(0.9, 0.999)
    )
    pool: Literal["avg", "token"] = "avg"
    layer_decay: Share = 0.65
    frozen: bool = False


class ProbeConfig(FinetuneConfig):
    """Linear probing as in MAE (appendix A.1): frozen encoder, BatchNorm without affine, LARS, crop and flip only."""

    model: ModelSource = ModelSource()
    augment: AugmentConfig = AugmentConfig(rand_augment=None, mixup=0, cutmix=0, label_smoothing=0, random_erasing=0)
    optim: OptimConfig = OptimConfig(
        epochs=90, batch_size=16384, base_lr=0.1, warmup_epochs=10, weight_decay=0, betas=(0.9, 0.999)
    )
    pool: Literal["avg", "token"] = "token"
    layer_decay: Annotated[float, Field(ge=1, le=1)] = 1.0
    frozen: Literal[True] = True
    optimizer: Literal["adamw", "lars", "sgd"] = "lars"
    neighbours: Positive = 20


class DetectionData(SourceConfig):
    """``data`` of detection: a folder in COCO's format (docs/detection.md). ``flip`` mirrors half of the images.

    ``annotated`` says whether boxes and masks were drawn on the ``stored`` pixels of images that EXIF turns or mirrors,
    as is COCO's convention, or on the images ``upright``, as they are seen; ``auto`` finds out where sizes tell.
    """

    source: str = "coco"
    layout: Literal["auto", "coco", "coco2014", "coco2017", "instances"] = "auto"
    annotated: Literal["auto", "stored", "upright"] = "auto"
    flip: bool = True


class DetectionConfig(TaskConfig):
    """Mask R-CNN on the encoder's maps at strides 4, 8, 16 and 32 (paper, V-B). The defaults are the 1x schedule.

    Images are enlarged or reduced until their shorter side has ``min_size`` pixels, or their longer one ``max_size``;
    of several ``min_size`` each image in training draws one, and the last one measures. Encoders that take one size
    only (Swin, relative positions) get that of ``model.image_size``, a square: images are fitted into it and padded.
    ``masks`` false trains Faster R-CNN on boxes alone. ``anchor_sizes`` are the sides in pixels of the boxes that the
    strides 4 to 64 start from; ``width`` is the number of features of the pyramid and the heads, and ``proposals`` of
    an image's boxes teach the heads in a step. ``detections`` is how many an image may have, of ``score_threshold`` at
    least. Folds hold out images.
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
        milestones=(0.6666667, 0.9166667),
        betas=(0.9, 0.999),
    )
    optimizer: Literal["adamw"] = "adamw"
    min_size: Annotated[tuple[Positive, ...], Field(min_length=1), BeforeValidator(_listed)] = (800,)
    max_size: Positive = 1333
    masks: bool = True
    anchor_sizes: tuple[Positive, Positive, Positive, Positive, Positive] = (32, 64, 128, 256, 512)
    width: Positive = 256
    proposals: Positive = 512
    detections: Positive = 100
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05

    @model_validator(mode="after")
    def _fits(self) -> DetectionConfig:
        if max(self.min_size) > self.max_size:
            raise ValueError(f"min_size {max(self.min_size)} is more than max_size {self.max_size}")
        return self


class SegmentationData(SourceConfig):
    """``data`` of segmentation: ADE20K's folder, or any folder of images and masks (docs/segmentation.md).

    An image is resized, proportions kept, to fit into ``scale`` = [long side, short side], in training ``ratio`` times
    that; null leaves it as it is. In training a crop of ``crop_size`` is cut in which no class has more than
    ``max_share``, if ten tries find one, flipped half of the time (``flip``) and distorted in brightness, contrast,
    saturation and hue (``photometric``). ``check`` reads every mask before the first step. ``annotated`` is that of
    detection, for masks that have no orientation of their own.
    """

    source: str = "ADEChallengeData2016"
    layout: Literal["auto", "ade20k", "pairs"] = "auto"
    annotated: Literal["auto", "stored", "upright"] = "auto"
    scale: tuple[Positive, Positive] | None = (2048, 512)
    ratio: Annotated[tuple[PositiveReal, PositiveReal], AfterValidator(rising)] = (0.5, 2.0)
    max_share: Share = 0.75
    flip: bool = True
    photometric: bool = True
    check: bool = True


class UperNetConfig(Section):
    """``head``: UperNet (Xiao et al., 2018) of ``channels``, and the auxiliary head of training on the third level.

    ``taps`` are the blocks of a ViT that it builds on, by default those of the thirds and the half: 3, 5, 7, 11 of 12.
    """

    channels: Positive = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.4
    auxiliary_channels: Positive = 256
    taps: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=4, max_length=4)


class SlideConfig(Section):
    """``inference``: on the ``whole`` image at once, or on windows of ``crop_size``, ``stride`` pixels apart.

    The stride is two thirds of the crop if left out: 341 of 512.
    """

    mode: Literal["whole", "slide"] = "slide"
    stride: Positive | None = None


class SegmentationConfig(TaskConfig):
    """Training of UperNet. The defaults are mmsegmentation's recipe for MAE's ViT-B on ADE20K.

    ``crop_size`` is what it is trained on, in pixels; ``model.image_size`` resamples a ViT's positions once, for all
    sizes. Where the source has no validation part, ``fold`` of ``folds`` is drawn at random, the same for every seed.
    """

    task: Literal["segmentation"] = "segmentation"
    model: ModelSource = ModelSource(drop_path=0.1)
    data: SegmentationData = SegmentationData()
    crop_size: ImageSize = (512, 512)
    head: UperNetConfig = UperNetConfig()
    inference: SlideConfig = SlideConfig()
    optim: OptimConfig = OptimConfig(
        steps=160_000, batch_size=16, base_lr=1.6e-3, warmup_steps=1500, schedule="linear", betas=(0.9, 0.999)
    )
    layer_decay: Share = 0.65
    optimizer: Literal["adamw", "sgd"] = "adamw"

    @model_validator(mode="after")
    def _fits_together(self) -> SegmentationConfig:
        if any(side % 32 for side in self.crop_size):
            raise ValueError(f"crop_size {list(self.crop_size)} is not a multiple of 32, the widest stride")
        if (stride := self.inference.stride) is not None and stride > min(self.crop_size):
            raise ValueError(
                f"inference.stride {stride} is wider than crop_size {list(self.crop_size)}: "
                "pixels between two windows would have no answer"
            )
        if self.run.parallel == "fsdp":
            raise ValueError("run.parallel fsdp: segmentation trains with ddp only")
        return self

    @property
    def stride(self) -> tuple[int, int]:
        """From one window of inference to the next, down and across, in pixels."""
        height, width = self.crop_size
        stride = self.inference.stride
        return (stride, stride) if stride is not None else (height * 2 // 3, width * 2 // 3)


class RetrievalConfig(TaskConfig):
    """Training of a descriptor for images of one thing. The defaults follow DELG's published code (Cao et al., 2020).

    A descriptor has ``dim`` features; null leaves the whitening out. ArcFace has a ``margin`` in radians and begins
    with the factor ``scale``. Images are described at each of ``scales`` of ``model.image_size`` when they are
    measured; with ``longest`` at each of ``scales`` of their own size, whole, the longest side reduced to so many
    pixels where it has more. ``benchmark`` is a folder to measure on: revisited Oxford or Paris, ``queries/`` and
    ``database/``, or folders of classes; left out, ``fold`` of ``folds`` parts of the classes is held out.
    """

    task: Literal["retrieval"] = "retrieval"
    model: ModelSource = ModelSource()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig(
        steps=500_000, batch_size=32, base_lr=0.08, warmup_steps=0, schedule="linear", weight_decay=1e-4
    )
    optimizer: Literal["adamw", "lars", "sgd"] = "sgd"
    dim: Positive | None = 2048
    margin: Annotated[float, Field(ge=0, lt=1.5)] = 0.1
    scale: PositiveReal = 45.25
    scales: Annotated[tuple[PositiveReal, ...], Field(min_length=1)] = (1.0,)
    longest: Positive | None = None
    benchmark: str | None = None


TASKS: dict[str, type[TaskConfig]] = {
    "classification": FinetuneConfig,
    "detection": DetectionConfig,
    "segmentation": SegmentationConfig,
    "retrieval": RetrievalConfig,
}
"""The configuration of each task, by what ``--task`` and the key ``task`` say."""
