"""``ehm train``: the configuration of a pretraining run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from ehm.config.data import PretrainData, refuse_colour_augmentations
from ehm.config.encoders import PLAIN, EncoderSpec, VitForm, encoder_spec
from ehm.config.objectives import OBJECTIVES
from ehm.config.recipes import add_recipe
from ehm.config.section import Section
from ehm.config.sections import ADAPT_CHANNELS, ChannelRule, LoraConfig, OptimConfig, RunConfig
from ehm.config.values import (
    BelowOne,
    Count,
    EncoderName,
    Fraction,
    ImageSize,
    Positive,
    PositiveReal,
    Share,
    Stages,
    UnitRange,
)
from ehm.config.watch import WatchConfig

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
    "ijepa",
    "attmask_high",
    "attmask_hint",
    "attmask_low",
    "mst",
    "epm",
    "evolved",
    "shallow",
    "deep",
]
ObjectiveName = Annotated[str, AfterValidator(_check_objective), WithJsonSchema({"enum": list(OBJECTIVES)})]
_ENCODER_KEYS = ("encoder", "patch_size", "image_size")
_ENCODER_MODEL_KEYS = ("width", "depth", "heads", "window", "mlp_ratio", "relative", "form")
_INPUT_KEYS = ("mean", "std")
"""Keys that weights to begin with decide: of the configuration, of its section ``model``, and of ``data``."""
_IJEPA_LOWEST_RATIO = 0.2
"""Share of the largest of I-JEPA's target blocks: a smaller mask would be a part of one block."""
_IJEPA_FEWEST_VISIBLE = 10
"""Units that stay visible with I-JEPA's masks, at least (its ``min_keep``)."""
_CLASS_TOKEN_MASKINGS = ("attmask_high", "attmask_hint", "attmask_low", "mst")


class ModelConfig(Section):
    """``model``: what the encoder's name leaves open, and what the objective needs besides."""

    init: str | None = Field(
        None,
        description="Weights to begin with: a run or checkpoint folder, a published file, a folder in Hugging Face's "
        "layout, timm:NAME or hf:OWNER/NAME; without encoder, theirs is pretrained; null for random ones.",
    )
    width: Positive | None = Field(None, description="Number of features of a token; null takes the published one.")
    depth: Stages = Field(
        None, description="Number of blocks, for a Swin a list with one number a stage; null takes the published one."
    )
    heads: Stages = Field(
        None,
        description="Number of attention heads, for a Swin a list with one number a stage; null takes the published "
        "one.",
    )
    window: Positive | None = Field(
        None, description="Side of a Swin's attention window in tokens; null takes the shorter side of the last stage."
    )
    mlp_ratio: PositiveReal | None = Field(
        None, description="Hidden features of an MLP for each feature of a token; null takes the published one, 4."
    )
    relative: bool | None = Field(
        None,
        description="Whether a ViT has a bias for every relative position, as BEiT's; null takes what the objective's "
        "published ViT has.",
    )
    form: VitForm = PLAIN
    adapt_channels: ChannelRule = Field("mean", description=ADAPT_CHANNELS)
    drop_path: BelowOne = Field(
        0.0,
        description="Share of residual branches that the last block leaves out (stochastic depth); 0 for objective "
        "mae.",
    )
    freeze: Count = Field(
        0,
        description="Number of first blocks that do not learn, nor does the embedding before them; for a Swin counted "
        "over all stages.",
    )
    tokenizer: str | None = Field(
        None,
        description="Visual tokens for objective beit: a run of ehm tokenizer train, or DALL-E's encoder.pkl.",
    )
    decoder_width: Positive = Field(
        512, description="Number of features of a token in the decoder of objectives mae and feature."
    )
    decoder_depth: Positive = Field(8, description="Number of blocks of that decoder.")
    decoder_heads: Positive = Field(16, description="Number of attention heads of that decoder.")
    norm_pix_loss: bool = Field(
        True, description="Whether MAE predicts pixels that are normalised within each patch (MAE, section 3)."
    )
    teacher: Literal["start", "ema"] = Field(
        "ema",
        description="Whose features objective feature predicts: those of the encoder in model.init, which stays as it "
        "is, or those of the model's moving average.",
    )
    teacher_blocks: Positive | None = Field(
        None,
        description="Number of last blocks whose outputs are averaged to the features of teacher ema; null takes half "
        "of them.",
    )
    loss: Literal["smooth_l1", "cosine"] = Field(
        "smooth_l1", description="How objective feature compares its predictions with the teacher's features."
    )
    loss_beta: PositiveReal = Field(
        2.0, description="Difference from which loss smooth_l1 grows along a line, below it is a square."
    )


class MaskConfig(Section):
    """``mask``: how much is hidden, and how deep in the hierarchy (paper, sections III and IV)."""

    ratio: Fraction = Field(0.75, description="Share of the mask units that are hidden.")
    unit: Positive | None = Field(
        None,
        description="Side in pixels of the square that is hidden or shown as a whole; null takes one output token of "
        "the encoder.",
    )
    schedule: Literal["linear", "sqrt"] = Field(
        "linear", description="How the depth of evolved masks grows with the progress of training."
    )
    depth_range: UnitRange = Field(
        (0.0, 1.0), description="Depth of evolved masks at the start and at the end; 0 masks patches, 1 whole objects."
    )
    similarity: Literal["attention", "cosine"] = Field(
        "attention",
        description="What hierarchies and parts are made of: the attention of the first blocks, or the cosine of the "
        "features behind them.",
    )
    blocks: Positive = Field(6, description="Number of first blocks that give the similarity.")
    balance: Literal["none", "sinkhorn"] = Field(
        "sinkhorn", description="Whether the similarity is balanced, so that no patch attracts all others."
    )
    source: Literal["online", "ema", "teacher"] = Field(
        "online",
        description="Whose similarity it is: the trained encoder's, its moving average's, or the teacher's of "
        "objective feature.",
    )
    build: Literal["auto", "host", "device"] = Field(
        "auto",
        description="Where hierarchies are built, which changes no mask; auto takes what suits the device.",
    )
    views: Positive = Field(
        1,
        description="Number of masks of each image after one forward pass; optim.batch_size counts masked images, so "
        "that an epoch has as many times more steps.",
    )

    channels: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of an image's channels that the encoder does not see, drawn anew for each image and step; "
        "targets have all of them. 0 leaves none out.",
    )


class TrainConfig(Section):
    """A pretraining run. The defaults are the published recipe of its objective, MAE's at the paper's 300 epochs."""

    objective: ObjectiveName = Field("mae", description="What is learnt from the visible patches (docs/objectives.md).")
    encoder: EncoderName = Field("vit_base", description="Name of the encoder to pretrain.")
    masking: Masking = Field("evolved", description="How masks are chosen (docs/masking.md).")
    image_size: ImageSize = Field(
        (224, 224), description="Height and width of the encoder's input in pixels; one number means a square."
    )
    patch_size: Positive = Field(16, description="Side of a patch in pixels.")
    model: ModelConfig = ModelConfig()
    mask: MaskConfig = MaskConfig()
    data: PretrainData = PretrainData()
    optim: OptimConfig = OptimConfig()
    layer_decay: Share = Field(
        1.0, description="Factor of the learning rate from each layer of the encoder to the layer below it."
    )
    lora: LoraConfig = LoraConfig()
    run: RunConfig = RunConfig()
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="before")
    @classmethod
    def _add_recipe(cls, values: Any) -> Any:
        return add_recipe(values) if isinstance(values, dict) else values

    @classmethod
    def drop_superseded(cls, values: dict[str, Any], overridden: Collection[str]) -> None:
        """Remove the encoder that a file describes if ``model.init`` is overridden: other weights bring their own."""
        if "model.init" not in overridden:
            return
        # the image size stays, as other encoders take it too
        for key in ("encoder", "patch_size"):
            values.pop(key, None)
        for name, keys in (("model", _ENCODER_MODEL_KEYS), ("data", _INPUT_KEYS)):
            section = values.get(name)
            # the normalisation of other channels goes with the images: weights are adapted to those
            if name == "data" and isinstance(section, dict) and section.get("channels", 3) != 3:
                continue
            if isinstance(section, dict):
                for key in keys:
                    section.pop(key, None)

    @property
    def awaits_encoder(self) -> bool:
        """True if the weights of ``model.init`` decide on the encoder, because ``encoder`` is not given."""
        return self.model.init is not None and "encoder" not in self.model_fields_set

    def with_encoder_of(self, other: TrainConfig) -> TrainConfig:
        """Return the configuration with the encoder of ``other``, its image size and its normalisation of pixels."""
        model = {key: getattr(other.model, key) for key in _ENCODER_MODEL_KEYS}
        data = {key: getattr(other.data, key) for key in _INPUT_KEYS}
        update: dict[str, Any] = {key: getattr(other, key) for key in _ENCODER_KEYS}
        update["model"] = self.model.model_copy(update=model)
        update["data"] = self.data.model_copy(update=data)
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _check_together(self) -> TrainConfig:
        if self.awaits_encoder:
            # checked once the weights are known
            return self
        OBJECTIVES[self.objective].check(self)
        refuse_colour_augmentations(self.data.pixels, {"data.color_jitter": self.data.color_jitter})
        if self.masking in _CLASS_TOKEN_MASKINGS and not self.spec.has_class_token:
            raise ValueError(f"masking {self.masking} goes by the class token's attention, and {self.encoder} has none")
        self._check_units()
        self._check_hidden_channels()
        if self.model.freeze > self.spec.blocks:
            raise ValueError(f"model.freeze {self.model.freeze}: {self.encoder} has {self.spec.blocks} blocks")
        if self.lora.rank is not None and self.model.init is None:
            raise ValueError(f"lora.rank {self.lora.rank}: an update needs trained weights below it; set model.init")
        if self.optim.batch_size % self.mask.views:
            raise ValueError(
                f"optim.batch_size {self.optim.batch_size} is not a multiple of mask.views {self.mask.views}"
            )
        if self.mask.source == "teacher" and not OBJECTIVES[self.objective].has_teacher:
            raise ValueError(f"mask.source teacher: objective {self.objective} has none; take online or ema")
        if self.mask.source == "ema" and self.optim.ema_decay is None:
            raise ValueError("mask.source ema needs optim.ema_decay, for example 0.9999")
        return self

    def _check_units(self) -> None:
        spec = self.spec
        unit = self.unit
        # units that do not divide the image would be cut at its border
        multiples = range(spec.stride, min(spec.image_size) + 1, spec.stride)
        fitting = [side for side in multiples if spec.image_size[0] % side == 0 == spec.image_size[1] % side]
        if unit not in fitting:
            closest = min(fitting, key=lambda side: abs(side - unit))
            raise ValueError(
                f"mask.unit {unit} should be a multiple of the encoder's stride {spec.stride} that divides image_size "
                f"{list(spec.image_size)}, for example {closest}"
            )
        units = self.units[0] * self.units[1]
        hidden = round(self.masks.ratio * units)
        if not 0 < hidden < units:
            raise ValueError(
                f"mask.ratio {self.mask.ratio} hides {hidden} of {units} units of {unit} pixels; "
                "some must be, and some stay"
            )
        if self.masking == "ijepa":
            self._check_target_blocks(units, hidden)

    def _check_hidden_channels(self) -> None:
        channels = self.data.pixels.count
        # as the masks of patches are rounded
        hidden = round(self.mask.channels * channels)
        if self.mask.channels and not 0 < hidden < channels:
            raise ValueError(
                f"mask.channels {self.mask.channels} leaves out {hidden} of {channels} channels; some must be, and "
                "some stay"
            )
        if self.mask.channels and self.run.parallel == "fsdp":
            raise ValueError("mask.channels: not with run.parallel fsdp, which embeds inside the model; use ddp")

    def _check_target_blocks(self, units: int, hidden: int) -> None:
        if self.mask.ratio < _IJEPA_LOWEST_RATIO:
            raise ValueError(
                f"mask.ratio {self.mask.ratio}: masking ijepa hides blocks of up to a fifth of the image each, so that "
                f"it needs {_IJEPA_LOWEST_RATIO} or more"
            )
        if units - hidden < _IJEPA_FEWEST_VISIBLE:
            raise ValueError(
                f"mask.ratio {self.mask.ratio} leaves {units - hidden} of {units} units visible, and masking ijepa "
                f"needs {_IJEPA_FEWEST_VISIBLE}; take a smaller mask.ratio, larger images or smaller units"
            )

    @cached_property
    def spec(self) -> EncoderSpec:
        """The encoder's sizes; the objective decides on relative positions if nothing else does.

        Raises ValueError if the weights of ``model.init`` decide on the encoder, and have not been opened yet.
        """
        if self.awaits_encoder:
            raise ValueError(f"encoder: {self.model.init} decides on it, and was not opened yet")
        relative = self.model.relative
        if relative is None:
            # a form that is asked for has positions of its own
            relative = OBJECTIVES[self.objective].relative_vit and self.model.form == PLAIN
        channels = self.data.pixels.count
        return encoder_spec(self.encoder, self.image_size, self.patch_size, self.model, relative, channels)

    @property
    def unit(self) -> int:
        """Side of a mask unit in pixels."""
        return self.mask.unit or self.spec.stride

    @property
    def units(self) -> tuple[int, int]:
        """Mask units down and across."""
        return self.image_size[0] // self.unit, self.image_size[1] // self.unit

    @cached_property
    def masks(self) -> MaskConfig:
        """The section ``mask`` with the share of units that is really hidden.

        See :meth:`Objective.compute_hidden_ratio`.
        """
        units = self.units[0] * self.units[1]
        ratio = OBJECTIVES[self.objective].compute_hidden_ratio(self.mask.ratio, units)
        return self.mask.model_copy(update={"ratio": ratio})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> TrainConfig:
        """Return a copy with the values of ``update``, and without what has been computed from the old ones."""
        copy = super().model_copy(update=update, deep=deep)
        # loops ask for these at every step, so that they are computed once; pydantic copies the results too
        for name in ("spec", "masks"):
            copy.__dict__.pop(name, None)
        return copy
