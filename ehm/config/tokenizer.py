"""``ehm tokenizer train``: the configuration of the discrete VAE that gives BEiT its visual tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ehm.config.data import PretrainData, require_photographs
from ehm.config.section import Section
from ehm.config.sections import OptimConfig, RunConfig
from ehm.config.values import ImageSize, NotNegative, Positive, PositiveReal

__all__ = ["TokenizerConfig"]


class TokenizerConfig(Section):
    """A run of ``ehm tokenizer train``: a small discrete VAE, which gives BEiT its visual tokens.

    Pixels are reconstructed as they are: ``data.mean`` and ``data.std`` play no part.
    """

    vocabulary: Annotated[int, Field(ge=2)] = Field(8192, description="Number of codes.")
    width: Positive = Field(256, description="Number of features of a code.")
    stride: Literal[2, 4, 8, 16, 32] = Field(8, description="Side in pixels of the square that one code stands for.")
    image_size: ImageSize = Field(
        (112, 112), description="Height and width of the training images in pixels; one number means a square."
    )
    temperature: tuple[PositiveReal, PositiveReal] = Field(
        (0.5, 0.05),
        description="Temperature of the Gumbel-softmax at the start and at the end, along half a cosine (DALL-E: 1 "
        "to 1/16).",
    )
    kl_weight: NotNegative = Field(
        1e-3, description="Weight of the divergence between the distribution of all codes and the uniform one."
    )
    data: PretrainData = PretrainData()
    optim: OptimConfig = OptimConfig(
        epochs=50, batch_size=256, base_lr=1e-3, warmup_epochs=1, weight_decay=1e-4, betas=(0.9, 0.999), clip_grad=1.0
    )
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _check_together(self) -> TokenizerConfig:
        require_photographs(self.data, "a tokenizer")
        if any(side % self.stride for side in self.image_size):
            raise ValueError(f"image_size {list(self.image_size)} is not a multiple of stride {self.stride}")
        # The encoder halves the image and doubles its width at each step, ending with ``width``.
        if self.width % (self.stride // 2):
            raise ValueError(f"width {self.width} is not a multiple of {self.stride // 2}, half of the stride")
        if self.optim.ema_decay is not None:
            raise ValueError("optim.ema_decay: a tokenizer has no moving average; leave it out")
        if self.run.parallel == "fsdp" or self.run.grad_checkpointing:
            raise ValueError("run.parallel fsdp and run.grad_checkpointing: a tokenizer is small enough without")
        return self
