"""``ehm finetune --task retrieval``: the configuration of image descriptors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ehm.config.data import DataConfig, require_photographs
from ehm.config.sections import ModelSource, OptimConfig
from ehm.config.tasks.base import TaskConfig
from ehm.config.values import Positive, PositiveReal

__all__ = ["RetrievalConfig"]


class RetrievalConfig(TaskConfig):
    """Training of a descriptor for images of one thing. The defaults are those of DELG (Cao et al., 2020)."""

    task: Literal["retrieval"] = "retrieval"
    model: ModelSource = ModelSource()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig(
        steps=500_000, batch_size=32, base_lr=0.08, warmup_steps=0, schedule="linear", weight_decay=1e-4
    )
    optimizer: Literal["adamw", "lars", "sgd"] = "sgd"
    pool: Literal["gem", "token", "map"] = Field(
        "gem",
        description="What a descriptor is made of: the generalised mean of the patch tokens (gem), the class token "
        "(token), or what a learned query takes of the patches (map), as in SigLIP.",
    )
    dim: Positive | None = Field(2048, description="Number of features of a descriptor; null leaves whitening out.")
    margin: Annotated[float, Field(ge=0, lt=1.5)] = Field(0.1, description="ArcFace's margin in radians.")
    scale: PositiveReal = Field(45.25, description="ArcFace's factor of the cosines at the start; it is learnt.")
    scales: Annotated[tuple[PositiveReal, ...], Field(min_length=1)] = Field(
        (1.0,), description="Factors of the image size at which an image is described when it is measured."
    )
    longest: Positive | None = Field(
        None,
        description="Longest side in pixels of an image that is measured whole, in its own proportions; null measures "
        "at model.image_size.",
    )
    benchmark: str | None = Field(
        None,
        description="Folder to measure on: revisited Oxford or Paris, queries/ and database/, or folders of classes; "
        "null holds out a fold of the classes.",
    )

    @model_validator(mode="after")
    def _check_images(self) -> RetrievalConfig:
        require_photographs(self.data, "retrieval")
        return self
