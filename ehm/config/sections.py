"""The sections that several kinds of configuration share, and the types of their values."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ehm.config.encoders import PRESETS
from ehm.config.inputs import IMAGENET_MEAN, IMAGENET_STD, CropMode, InputSpec, Interpolation, Triple

__all__ = [
    "DataConfig",
    "EncoderName",
    "Fraction",
    "ImageData",
    "ImageSize",
    "ModelSource",
    "OptimConfig",
    "Positive",
    "PositiveReal",
    "PretrainData",
    "RunConfig",
    "Section",
    "Share",
    "SourceConfig",
    "Stages",
    "Unit",
    "rising",
]

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
PositiveReal = Annotated[float, Field(gt=0)]
PositiveTriple = tuple[PositiveReal, PositiveReal, PositiveReal]


def _both(value: Any) -> Any:
    if isinstance(value, int):
        return value, value
    if not isinstance(value, (list, tuple)):
        raise ValueError("should be a number of pixels or [height, width]")
    return value


def rising(value: tuple[float, float]) -> tuple[float, float]:
    """A range, unless it falls: ValueError."""
    if value[0] > value[1]:
        raise ValueError(f"should not fall, for example {sorted(value)}")
    return value


def strictly_rising(value: tuple[float, float]) -> tuple[float, float]:
    """A range of two different numbers, unless it falls: ValueError."""
    if value[0] >= value[1]:
        raise ValueError(f"should rise: [black, white], for example [0, 4095], not {list(value)}")
    return value


def _numbers(value: Any) -> Any:
    each = value if isinstance(value, (list, tuple)) else [value]
    if not each or any(type(number) is not int or number < 1 for number in each):
        raise ValueError("should be a whole number from 1, or of a Swin a list of them, one for each stage")
    return value


def _known(encoder: str) -> str:
    if encoder not in PRESETS:
        raise ValueError(f"should be one of {', '.join(PRESETS)}")
    return encoder


EncoderName = Annotated[str, AfterValidator(_known)]
ImageSize = Annotated[tuple[Positive, Positive], BeforeValidator(_both)]
"""Height and width in pixels; one number means a square."""
Stages = Annotated[Positive | tuple[Positive, ...], BeforeValidator(_numbers)] | None
"""One number, or of a Swin one for each stage; None is the published one."""


class Section(BaseModel):
    """Base of all sections: immutable, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, values: Any) -> Any:
        """A section given in part keeps the defaults of the recipe that holds it, not those of the section's class."""
        if not isinstance(values, dict):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {
            key: defaults[key].model_dump() | value
            if isinstance(value, dict) and isinstance(defaults.get(key), Section)
            else value
            for key, value in values.items()
        }


class SourceConfig(Section):
    """``data``, of every task: where images come from and how their pixels are normalised.

    ``mean`` and ``std`` are those that the encoder's weights were trained with, unless they are set here. ``workers``
    processes read the images. A file that cannot be read is replaced by another one, or with ``strict`` ends the run.
    A task refuses a named class that nothing to train on has, unless ``allow_empty_classes`` is set. ``range`` are the
    values that are black and white in images of more than 8 bits, the same for all of them, for example [0, 4095] of a
    camera of 12 bits whose files have 16; left out, they follow from the type of the values.
    """

    source: str
    range: Annotated[tuple[float, float], AfterValidator(strictly_rising)] | None = None
    mean: Triple | None = None
    std: PositiveTriple | None = None
    workers: Annotated[int, Field(ge=0)] = 2
    strict: bool = False
    allow_empty_classes: bool = False

    def input_spec(self, own: InputSpec) -> InputSpec:
        """Return ``own``, what the weights say about their images, with everything that this section sets."""
        given = {name: getattr(self, name, None) for name in vars(own)}
        return replace(own, **{name: value for name, value in given.items() if value is not None})


class ImageData(SourceConfig):
    """``data``: where images come from, how they are cropped and normalised, and how strongly colours vary.

    ``source`` is ``elpv`` (the photographs that the package elpv-dataset ships), a folder, the root of ImageNet or of
    GLDv2, or tar shards (``/data/shard-{000000..000146}.tar`` or a folder of them). ``layout`` says which of these it
    is: a ``folder`` has parts or classes, ``parts`` and ``classes`` say which where both are possible.
    """

    source: str = "elpv"
    layout: Literal["auto", "classes", "elpv", "folder", "gldv2", "imagenet", "parts", "shards"] = "auto"
    crop_scale: Annotated[tuple[Share, Share], AfterValidator(rising)] = (0.2, 1)
    flip: bool = True
    color_jitter: Unit = 0.0


class DataConfig(ImageData):
    """``data`` of tasks that see an image in one crop.

    ``crop_pct``, ``crop_mode`` and ``interpolation`` say how images are resized and cropped to be measured, in timm's
    words; the crops of training are resized by ``interpolation`` too. Left out, they are those of the weights.
    """

    crop_pct: Annotated[float, Field(gt=0, le=2)] | None = None
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None


class PretrainData(ImageData):
    """``data`` of runs that need no encoder's weights: ``mean`` and ``std`` are ImageNet's if they are left out."""

    mean: Triple = IMAGENET_MEAN
    std: PositiveTriple = IMAGENET_STD


class OptimConfig(Section):
    """``optim``: AdamW and its schedule; the learning rate is ``base_lr * batch_size / 256``.

    A run has ``epochs``, or exactly ``steps`` where that is set. After the warm-up, of ``warmup_epochs`` or exactly
    ``warmup_steps``, the rate falls to ``min_lr`` along half a ``cosine`` or ``linear``ly, or by a ``step`` to a tenth
    at each of ``milestones``, shares of the run: SimMIM's is seven eighths.

    ``batch_size`` is that of all processes together, whatever their number; each passes its share through the device in
    ``accumulate`` parts.
    """

    epochs: Positive = 300
    steps: Positive | None = None
    batch_size: Positive = 4096
    accumulate: Positive = 1
    base_lr: PositiveReal = 1.5e-4
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    warmup_epochs: Annotated[float, Field(ge=0)] = 40
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    schedule: Literal["cosine", "step", "linear"] = "cosine"
    milestones: tuple[Fraction, ...] = (0.875,)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    clip_grad: PositiveReal | None = None
    ema_decay: Fraction | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @model_validator(mode="after")
    def _divides(self) -> OptimConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.steps is None and self.warmup_steps is None and self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} is more than epochs {self.epochs}")
        return self

    @property
    def lr(self) -> float:
        """Peak learning rate, by the linear scaling rule."""
        return self.base_lr * self.batch_size / 256

    def count_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the whole run."""
        return self.steps or self.epochs * steps_per_epoch

    def count_warmup_steps(self, steps_per_epoch: int) -> float:
        """Return the number of steps of the warm-up, which need not be whole."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return self.warmup_epochs * steps_per_epoch


class RunConfig(Section):
    """``run``: seed, logging, checkpoints, and how to compute what the rest says.

    ``max_steps`` stops early, on the schedule of the whole run. ``compile`` lets torch compile the model,
    ``grad_checkpointing`` trades a third more time for the memory of activations, ``deterministic`` admits only
    kernels that give the same result every time. Several processes hold a copy of the model each (``parallel: ddp``),
    or share one (``fsdp``). ``checkpoint_every`` and ``measure_every`` are in epochs.
    """

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    compile: bool = False
    grad_checkpointing: bool = False
    deterministic: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    log_every: Positive = 10
    checkpoint_every: PositiveReal = 1
    measure_every: PositiveReal = 1
    keep: Positive = 2
    max_steps: Positive | None = None
    tensorboard: bool = True


class ModelSource(Section):
    """``model`` of a downstream task: an encoder and where its weights come from.

    ``init`` is a run folder or checkpoint of ours, a ``.safetensors`` or published ``.pth`` file, ``timm:NAME``, or
    ``scratch``. Sizes left open are those of the weights; ``encoder`` and ``patch_size`` are for ``scratch`` only.
    """

    init: str = "scratch"
    encoder: EncoderName = "vit_small"
    width: Positive | None = None
    depth: Stages = None
    heads: Stages = None
    window: Positive | None = None
    image_size: ImageSize | None = None
    patch_size: Positive | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
