"""The sections that every command shares: the optimiser, the run, and the encoder to begin with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ehm.config.encoders import PLAIN, VitForm
from ehm.config.renamed import rename_in_section
from ehm.config.section import Section
from ehm.config.values import (
    BelowOne,
    Count,
    Decay,
    EncoderName,
    Fraction,
    ImageSize,
    NotNegative,
    Positive,
    PositiveReal,
    Share,
    Stages,
)

__all__ = [
    "ADAPT_CHANNELS",
    "ChannelRule",
    "LoraConfig",
    "ModelSource",
    "OptimConfig",
    "RunConfig",
]


ChannelRule = Literal["mean", "repeat", "first"]
ADAPT_CHANNELS = (
    "How the patch embedding of weights is adapted to other channels: each channel gets the mean of theirs, theirs are "
    "repeated, or the first ones are kept and further ones begin at zero."
)


class OptimConfig(Section):
    """``optim``: the optimiser and its schedule; the peak learning rate is ``base_lr * batch_size / 256``."""

    # The defaults are those of MAE's pretraining at the paper's 300 epochs.
    epochs: Positive = Field(300, description="Length of the run in epochs, if optim.steps is null.")
    steps: Positive | None = Field(None, description="Length of the run in steps; null goes by optim.epochs.")
    batch_size: Positive = Field(4096, description="Number of images in a step, of all processes together.")
    accumulate: Positive = Field(
        1, description="Number of parts in which each process passes its share of a batch through the device."
    )
    base_lr: PositiveReal = Field(1.5e-4, description="Peak learning rate for each 256 images of the batch.")
    min_lr: NotNegative = Field(
        0.0, description="Lowest learning rate, which the schedule falls to; not scaled by the batch."
    )
    warmup_epochs: NotNegative = Field(
        40, description="Length of the linear warm-up in epochs, if optim.warmup_steps is null."
    )
    warmup_steps: Count | None = Field(
        None, description="Length of the linear warm-up in steps; null goes by optim.warmup_epochs."
    )
    schedule: Literal["cosine", "step", "linear"] = Field(
        "cosine",
        description="How the rate falls after the warm-up: along half a cosine, along a line, or by a step to a tenth "
        "at each of optim.milestones.",
    )
    milestones: tuple[Fraction, ...] = Field(
        (0.875,), description="The points at which schedule step lowers the rate, as shares of the run."
    )
    weight_decay: NotNegative = Field(0.05, description="Weight decay; biases and norms have none.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.95), description="AdamW's decay rates of the two moments.")
    clip_grad: PositiveReal | None = Field(
        None, description="Largest norm of the gradient of all parameters together; null does not clip."
    )
    ema_decay: Decay | None = Field(
        None,
        description="Decay of the moving average of the weights for each step, or two between which it rises; null "
        "keeps no average.",
    )
    ema_ramp: Share = Field(
        1.0, description="Share of the run over which the decay rises, if optim.ema_decay is two numbers."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the forward and backward pass; auto takes what suits the device."
    )
    tf32: bool = Field(
        False,
        description="Whether a GPU may round the factors of float32 matrix products to TF32, and an NPU to HF32; a CPU "
        "rounds nothing.",
    )

    @model_validator(mode="after")
    def _check_together(self) -> OptimConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.steps is None and self.warmup_steps is None and self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} is more than epochs {self.epochs}")
        return self

    @property
    def lr(self) -> float:
        """Peak learning rate, by the linear scaling rule."""
        return self.base_lr * self.batch_size / 256

    @property
    def last_ema_decay(self) -> float | None:
        """Decay of the moving average at the end of the run, None without an average."""
        if isinstance(self.ema_decay, tuple):
            return self.ema_decay[1]
        return self.ema_decay

    def count_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the whole run."""
        return self.steps or self.epochs * steps_per_epoch

    def count_warmup_steps(self, steps_per_epoch: int) -> float:
        """Return the number of steps of the warm-up, which need not be whole."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return self.warmup_epochs * steps_per_epoch


class RunConfig(Section):
    """``run``: seed, logging, checkpoints, and how the device computes what the other sections describe."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seed of every random number of the run.")
    compile: bool = Field(False, description="Whether torch compiles the model, which takes minutes at the start.")
    grad_checkpointing: bool = Field(
        False, description="Whether activations are computed again in the backward pass: less memory, more time."
    )
    deterministic: bool = Field(
        False, description="Whether only kernels are used that give the same result every time."
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="Whether each of several processes holds the whole model (ddp) or a part of it (fsdp)."
    )
    log_every: Positive = Field(10, description="Number of steps from one line of metrics to the next.")
    checkpoint_every: PositiveReal = Field(1, description="Number of epochs from one checkpoint to the next.")
    measure_every: PositiveReal = Field(1, description="Number of epochs from one measurement to the next.")
    keep: Positive = Field(2, description="Number of checkpoints that are kept, the newest ones.")
    max_steps: Positive | None = Field(
        None, description="Step at which to stop early, on the schedule of the whole run; null runs to the end."
    )
    trackers: tuple[str, ...] = Field(
        ("tensorboard",),
        description="Names of the programs that show the metrics besides metrics.jsonl: tensorboard, wandb, mlflow, "
        "swanlab, or those of other packages (docs/watch.md).",
    )

    @model_validator(mode="before")
    @classmethod
    def _rename_keys(cls, values: Any) -> Any:
        """Read the keys of earlier versions."""
        return rename_in_section("run", values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check_trackers(self) -> RunConfig:
        for name in self.trackers:
            if self.trackers.count(name) > 1:
                raise ValueError(f"trackers names {name} twice")
        return self


class LoraConfig(Section):
    """``lora``: a low-rank update that learns in place of the encoder's weights (Hu et al., 2022).

    A linear layer with the weight W computes as if it were W + alpha / rank * B A, and of these only B and A learn.
    """

    rank: Positive | None = Field(
        None,
        description="Rank of the update that learns in place of the encoder's weights; null lets the weights learn.",
    )
    alpha: PositiveReal = Field(16.0, description="Factor of the update, which is also divided by lora.rank.")
    dropout: BelowOne = Field(
        0.0, description="Share of its input that the update leaves out in training; the weights see all of it."
    )
    targets: Annotated[tuple[Literal["attn.qkv", "attn.proj", "mlp"], ...], Field(min_length=1)] = Field(
        ("attn.qkv", "attn.proj"),
        description="The linear layers of each block that have an update: those of queries, keys and values, that "
        "after the attention, and those of the MLP.",
    )
    norms: bool = Field(False, description="Whether the encoder's norms learn beside the update.")


class ModelSource(Section):
    """``model`` of a downstream task: an encoder and where its weights come from."""

    init: str = Field(
        "scratch",
        description="Weights to begin with: a run or checkpoint folder, a .safetensors or published .pth file, "
        "timm:NAME, or scratch for random ones.",
    )
    encoder: EncoderName = Field("vit_small", description="Name of the encoder to build, for init scratch only.")
    width: Positive | None = Field(
        None, description="Number of features of a token; null takes that of the weights or of the named encoder."
    )
    depth: Stages = Field(
        None, description="Number of blocks, for a Swin a list with one number a stage; null as for width."
    )
    heads: Stages = Field(
        None, description="Number of attention heads, for a Swin a list with one number a stage; null as for width."
    )
    window: Positive | None = Field(None, description="Side of a Swin's attention window in tokens; null as for width.")
    image_size: ImageSize | None = Field(
        None,
        description="Height and width of the encoder's input in pixels, one number for a square; positions are "
        "resampled to it; null takes that of the weights.",
    )
    patch_size: Positive | None = Field(
        None, description="Side of a patch in pixels, for init scratch only; null takes the published one."
    )
    mlp_ratio: PositiveReal | None = Field(
        None, description="Hidden features of an MLP for each feature of a token; null as for width."
    )
    form: VitForm = PLAIN
    adapt_channels: ChannelRule = Field("mean", description=ADAPT_CHANNELS)
    drop_path: BelowOne = Field(
        0.0, description="Share of residual branches that the last block leaves out in training (stochastic depth)."
    )
    freeze: Count = Field(
        0,
        description="Number of first blocks that do not learn, nor does the embedding before them; for a Swin counted "
        "over all stages.",
    )
