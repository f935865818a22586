"""The keys that every downstream task has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ehm.config.data import SourceConfig
from ehm.config.section import Section
from ehm.config.sections import LoraConfig, ModelSource, OptimConfig, RunConfig
from ehm.config.values import Count, Positive, Share

__all__ = ["TaskConfig"]


class TaskConfig(Section):
    """The keys that every task has."""

    task: str = Field(description="Name of the task; ehm finetune --task chooses it.")
    model: ModelSource
    data: SourceConfig
    optim: OptimConfig
    layer_decay: Share = Field(
        1.0, description="Factor of the learning rate from each layer of the encoder to the layer below it."
    )
    lora: LoraConfig = LoraConfig()
    optimizer: Literal["adamw", "lars", "sgd"] = Field("adamw", description="The optimiser.")
    folds: Annotated[int, Field(ge=2)] = Field(
        5, description="Number of parts of the data, of which one is held out if there is no validation part."
    )
    fold: Count = Field(0, description="Number of the part that is held out, from 0 to folds - 1.")
    patience: Positive | None = Field(
        None,
        description="Number of measurements in a row without a new best after which the run stops early; null runs to "
        "the end.",
    )
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _check_task(self) -> TaskConfig:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: with folds {self.folds} it is 0 to {self.folds - 1}")
        if self.lora.rank is not None and self.model.init == "scratch":
            raise ValueError(f"lora.rank {self.lora.rank}: an update needs trained weights below it; set model.init")
        return self
