"""``ehm train``: the configuration of a pretraining run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ehm.config.encoders import EncoderSpec, encoder_spec, family_of
from ehm.config.objectives import OBJECTIVES
from ehm.config.recipes import with_recipe
from ehm.config.sections import (
    EncoderName,
    Fraction,
    ImageSize,
    OptimConfig,
    Positive,
    PretrainData,
    RunConfig,
    Section,
    Stages,
    Unit,
    rising,
)

__all__ = ["MaskConfig", "Masking", "ModelConfig", "ObjectiveName", "TrainConfig"]


def _check_objective(name: str) -> str:
    if name not in OBJECTIVES:
        *others, last = (repr(known) for known in OBJECTIVES)
        raise ValueError(f"should be {', '.join(others)} or {last}")
    return name


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
ObjectiveName = Annotated[str, AfterValidator(_check_objective)]
_BY_CLASS_TOKEN = ("attmask_high", "attmask_hint", "attmask_low", "mst")


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


class TrainConfig(Section):
    """A pretraining run. The defaults are the published recipe of its objective, MAE's at the paper's 300 epochs."""

    objective: ObjectiveName = "mae"
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
        OBJECTIVES[self.objective].check(self)
        if self.masking in _BY_CLASS_TOKEN and not family_of(self.encoder).has_class_token:
            raise ValueError(f"masking {self.masking} goes by the class token's attention, and {self.encoder} has none")
        self._check_units()
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

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's numbers, of a ViT in the form that the objective has."""
        relative = OBJECTIVES[self.objective].relative_vit
        return encoder_spec(self.encoder, self.image_size, self.patch_size, self.model, relative)

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
        """``mask`` with the share that is really hidden (see :meth:`Objective.hidden_ratio`)."""
        ratio = OBJECTIVES[self.objective].hidden_ratio(self.mask.ratio, self.units[0] * self.units[1])
        return self.mask.model_copy(update={"ratio": ratio})
