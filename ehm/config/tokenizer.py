"""``ehm tokenizer train``: the configuration of the discrete VAE that gives BEiT its visual tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ehm.config.sections import ImageSize, OptimConfig, Positive, PositiveReal, PretrainData, RunConfig, Section

__all__ = ["TokenizerConfig"]


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
