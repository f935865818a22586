"""What a configuration may say: its sections, their defaults, and what has to fit together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ehm.config.encoders import PRESETS, SWIN_PRESETS, EncoderSpec
from ehm.config.inputs import IMAGENET_MEAN, IMAGENET_STD, CropMode, InputSpec, Interpolation, Triple
from ehm.config.recipes import with_recipe
from ehm.config.specs import encoder_spec

__all__ = [
    "AscendConfig",
    "CalibrationConfig",
    "DataConfig",
    "ExportConfig",
    "ImageData",
    "MaskConfig",
    "ModelConfig",
    "ModelSource",
    "OptimConfig",
    "PretrainData",
    "RunConfig",
    "Section",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "Triple",
    "TritonConfig",
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


Masking = Literal[
    "random",
    "grid",
    "block",
    "large_block",
    "attmask_high",
    "attmask_hint",
    "attmask_low",
    "mst",
    "epm",
    "evolved",
    "shallow",
    "deep",
]
Objective = Literal["mae", "simmim", "beit"]
_BY_CLASS_TOKEN = ("attmask_high", "attmask_hint", "attmask_low", "mst")
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


class ModelConfig(Section):
    """``model``: what the preset named by ``encoder`` leaves open, and what the objective needs besides.

    A Swin's ``depth`` and ``heads`` are lists, one number a stage, and ``window`` is in tokens. ``init`` is what
    weights to begin with: a run, a checkpoint or a published file; random ones if left out. ``drop_path`` is the share
    of branches that the last block leaves out. The decoder and ``norm_pix_loss`` are MAE's (section 3), ``tokenizer``
    is BEiT's: a run of ``ehm tokenizer train``, or DALL-E's ``encoder.pkl``.
    """

    init: str | None = None
    width: Positive | None = None
    depth: Stages = None
    heads: Stages = None
    window: Positive | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    tokenizer: str | None = None
    decoder_width: Positive = 512
    decoder_depth: Positive = 8
    decoder_heads: Positive = 16
    norm_pix_loss: bool = True


class MaskConfig(Section):
    """``mask``: how much is hidden, and how deep in the hierarchy (paper, sections III and IV).

    A mask unit is a square of ``unit`` pixels, by default one output token of the encoder, that is hidden as a whole;
    ``ratio`` is the share of them. Hierarchies and parts are made of the ``similarity`` of units: the ``attention`` of
    the first ``blocks`` blocks, or the ``cosine`` of the features behind them; ``balance`` evens it out, and ``source``
    is whose it is.
    ``build`` is where hierarchies are built, which changes no mask; ``auto`` is what suits the device. Every image of
    a batch is masked ``views`` times, after one look at it: ``optim.batch_size`` counts masked images, so that an epoch
    has as many times more steps.
    """

    ratio: Fraction = 0.75
    unit: Positive | None = None
    schedule: Literal["linear", "sqrt"] = "linear"
    depth_range: Annotated[tuple[Unit, Unit], AfterValidator(rising)] = (0.0, 1.0)
    similarity: Literal["attention", "cosine"] = "attention"
    blocks: Positive = 6
    balance: Literal["none", "sinkhorn"] = "sinkhorn"
    source: Literal["online", "ema"] = "online"
    build: Literal["auto", "host", "device"] = "auto"
    views: Positive = 1


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

    def total(self, epoch: int) -> int:
        """Steps of the run, where an epoch has so many."""
        return self.steps or self.epochs * epoch

    def warmup(self, epoch: int) -> float:
        """Steps of the warm-up, where an epoch has so many."""
        return self.warmup_epochs * epoch if self.warmup_steps is None else self.warmup_steps


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


class TrainConfig(Section):
    """A pretraining run. The defaults are the published recipe of its objective, MAE's at the paper's 300 epochs."""

    objective: Objective = "mae"
    encoder: EncoderName = "vit_base"
    masking: Masking = "evolved"
    image_size: ImageSize = (224, 224)
    patch_size: Positive = 16
    model: ModelConfig = ModelConfig()
    mask: MaskConfig = MaskConfig()
    data: PretrainData = PretrainData()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, values: Any) -> Any:
        return with_recipe(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        swin = self.encoder in SWIN_PRESETS
        if swin and self.objective == "mae":
            raise ValueError(
                f"objective mae leaves hidden patches out of the encoder, which {self.encoder} cannot do: its windows "
                "hold all of them; take objective simmim or beit, or a ViT"
            )
        if swin and self.masking in _BY_CLASS_TOKEN:
            raise ValueError(f"masking {self.masking} goes by the class token's attention, and {self.encoder} has none")
        if self.model.tokenizer is not None and self.objective != "beit":
            raise ValueError(f"model.tokenizer {self.model.tokenizer}: is for objective beit, not {self.objective}")
        self._check_units()
        if self.objective == "mae":
            self._check_decoder()
        if self.optim.batch_size % self.mask.views:
            raise ValueError(
                f"optim.batch_size {self.optim.batch_size} is not a multiple of mask.views {self.mask.views}"
            )
        if self.mask.source == "ema" and self.optim.ema_decay is None:
            raise ValueError("mask.source ema needs optim.ema_decay, for example 0.9999")
        return self

    def _check_units(self) -> None:
        spec, unit = self.spec, self.unit
        fitting = [
            side
            for side in range(spec.stride, min(spec.image_size) + 1, spec.stride)
            if not (spec.image_size[0] % side or spec.image_size[1] % side)
        ]
        if unit not in fitting:
            raise ValueError(
                f"mask.unit {unit} should be a multiple of the encoder's stride {spec.stride} that divides image_size "
                f"{list(spec.image_size)}, for example {min(fitting, key=lambda side: abs(side - unit))}"
            )
        units = self.units[0] * self.units[1]
        hidden = round(self.masks.ratio * units)
        if not 0 < hidden < units:
            raise ValueError(
                f"mask.ratio {self.mask.ratio} hides {hidden} of {units} units of {unit} pixels; "
                "some must be, and some stay"
            )

    def _check_decoder(self) -> None:
        if self.model.decoder_width % 4:
            raise ValueError(f"model.decoder_width {self.model.decoder_width} is not a multiple of 4")
        if self.model.decoder_width % self.model.decoder_heads:
            raise ValueError(
                f"model.decoder_width {self.model.decoder_width} is not a multiple of "
                f"model.decoder_heads {self.model.decoder_heads}"
            )
        if self.model.drop_path:
            raise ValueError(f"model.drop_path {self.model.drop_path}: not with objective mae, which has none")

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's numbers. BEiT and SimMIM have their ViT in the relative form."""
        return encoder_spec(
            self.encoder, self.image_size, self.patch_size, self.model, relative=self.objective != "mae"
        )

    @property
    def unit(self) -> int:
        """Side of a mask unit in pixels."""
        return self.mask.unit or self.spec.stride

    @property
    def units(self) -> tuple[int, int]:
        """Mask units down and across."""
        return self.image_size[0] // self.unit, self.image_size[1] // self.unit

    @property
    def masks(self) -> MaskConfig:
        """``mask`` with the share that is really hidden: SimMIM's published code rounds the number of units up."""
        units = self.units[0] * self.units[1]
        if self.objective != "simmim":
            return self.mask
        return self.mask.model_copy(update={"ratio": math.ceil(round(self.mask.ratio * units, 6)) / units})


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


class TritonConfig(Section):
    """What ``ehm export --triton`` and ``--kserve`` write.

    ``name`` is the model's, by default that of the bundle's folder. A request waits up to ``max_queue_delay`` (µs) for
    others to share a batch with, of one of ``preferred_batch_size`` where there are any; beyond ``max_queue_size``
    waiting ones it is refused. ``instances`` of the network run at once, each with ``threads`` on the CPU (0: one for
    each core of the machine). ``storage_uri`` is where KServe finds the repository.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]*$", description="of letters, digits, '_', '-' and '.'")] = ""
    max_batch_size: Positive = 32
    preferred_batch_size: tuple[Positive, ...] = ()
    max_queue_delay: Annotated[int, Field(ge=0)] = 2000
    max_queue_size: Positive = 256
    instances: Positive = 1
    threads: Annotated[int, Field(ge=0)] = 0
    storage_uri: Annotated[
        str, Field(pattern=r"^[a-z0-9+]+://.+$", description="a URI, for example s3://BUCKET/FOLDER")
    ] = "s3://BUCKET/FOLDER"

    @model_validator(mode="after")
    def _fits_together(self) -> TritonConfig:
        if max(self.preferred_batch_size, default=0) > self.max_batch_size:
            raise ValueError(f"preferred_batch_size goes beyond max_batch_size {self.max_batch_size}")
        return self


class AscendConfig(Section):
    """What ``ehm export --target ascend`` hands to ATC: the processor (``npu-smi info`` shows it) and the batch sizes.

    ATC takes 2 to 100 batch sizes, each up to 2048 (its reference, ``--dynamic_batch_size``).
    """

    soc_version: Annotated[str, Field(pattern=r"^\w+$", description="one word, for example Ascend910B3")] = (
        "Ascend910B3"
    )
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=2048)], ...], Field(min_length=2, max_length=100)] = (
        1,
        2,
        4,
        8,
        16,
        32,
    )


class CalibrationConfig(Section):
    """``calibration``: photographs that int8 takes its ranges from, and others that its quality is measured on.

    ``source`` and ``measure`` are what ``data.source`` may be. Left out, they are what the checkpoint was trained on
    and what its training held out; with ``source`` alone, its validation part, or images that calibrated nothing.
    ``images`` and ``measure_images`` are how many to take at most.
    """

    source: str | None = None
    images: Positive = 128
    measure: str | None = None
    measure_images: Positive = 512


class ExportConfig(Section):
    """``ehm export``: what the graph is written for, and what the weights leave open.

    ``opset`` is the ONNX operator set. ``target`` is ``portable`` (ONNX's plain operators), ``onnxruntime`` (its own
    attention beside them) or ``ascend`` (what its converter takes: operator sets 17 and 18, and the batch as only
    dynamic dimension). With ``preprocessing`` the graph takes bytes of any size and does everything behind the
    decoding; with ``dynamic_size`` a plain ViT takes images of any multiple of its patches. Both need ``opset`` 18,
    which is then the default. ``license`` and ``data_license`` are for the model card.

    ``model.init`` is the command's own argument; ``model.image_size`` resamples the positions. ``int8`` and ``float16``
    write the network in these numbers too.
    """

    opset: Annotated[int, Field(ge=17, le=20)] = 17
    target: Literal["onnxruntime", "portable", "ascend"] = "portable"
    preprocessing: bool = False
    dynamic_size: bool = False
    license: str | None = None
    data_license: str | None = None
    model: ModelSource = ModelSource()
    int8: bool = False
    float16: bool = False
    calibration: CalibrationConfig = CalibrationConfig()
    triton: TritonConfig = TritonConfig()
    ascend: AscendConfig = AscendConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_opset(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("preprocessing") or values.get("dynamic_size")):
            return {"opset": 18, **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> ExportConfig:
        wanted = [key for key in ("preprocessing", "dynamic_size") if getattr(self, key)]
        if len(wanted) > 1:
            raise ValueError("preprocessing brings every image to one size; leave dynamic_size out")
        if self.target == "ascend" and wanted:
            raise ValueError(f"target ascend: only the batch may be dynamic; leave {wanted[0]} out")
        if self.target == "ascend" and self.int8:
            raise ValueError("target ascend: its converter knows no quantised operators; leave int8 out")
        if self.target == "ascend" and self.opset > 18:
            raise ValueError(f"target ascend: opset {self.opset}: its converter takes 17 and 18")
        if wanted and self.opset < 18:
            raise ValueError(f"opset {self.opset}: {wanted[0]} needs 18, the first with an antialiased resize")
        return self


class TokenizerConfig(Section):
    """A run of ``ehm tokenizer train``: a small discrete VAE, which gives BEiT its visual tokens.

    ``vocabulary`` is the number of codes, ``stride`` the side in pixels of the square that each stands for, ``width``
    the features of a code. The Gumbel-softmax cools from the first ``temperature`` to the second along half a cosine
    (DALL-E: 1 to 1/16); ``kl_weight`` holds the distribution of all codes to the uniform one. Pixels are reconstructed
    as they are: ``data.mean`` and ``data.std`` play no part.
    """

    vocabulary: Annotated[int, Field(ge=2)] = 8192
    width: Positive = 256
    stride: Literal[2, 4, 8, 16, 32] = 8
    image_size: ImageSize = (112, 112)
    temperature: tuple[PositiveReal, PositiveReal] = (0.5, 0.05)
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3
    data: PretrainData = PretrainData()
    optim: OptimConfig = OptimConfig(
        epochs=50, batch_size=256, base_lr=1e-3, warmup_epochs=1, weight_decay=1e-4, betas=(0.9, 0.999), clip_grad=1.0
    )
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> TokenizerConfig:
        if any(side % self.stride for side in self.image_size):
            raise ValueError(f"image_size {list(self.image_size)} is not a multiple of stride {self.stride}")
        if self.width % (self.stride // 2):
            raise ValueError(f"width {self.width} is not a multiple of {self.stride // 2}, half of the stride")
        if self.optim.ema_decay is not None:
            raise ValueError("optim.ema_decay: a tokenizer has no moving average; leave it out")
        if self.run.parallel == "fsdp" or self.run.grad_checkpointing:
            raise ValueError("run.parallel fsdp and run.grad_checkpointing: a tokenizer is small enough without")
        return self
