"""What a configuration of a downstream task may say: supervised training from an encoder, and how it is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ehm.config.sections import (
    DataConfig,
    ModelSource,
    OptimConfig,
    Positive,
    PositiveReal,
    RunConfig,
    Section,
    Share,
    Unit,
)

__all__ = ["TASKS", "AugmentConfig", "FinetuneConfig", "ProbeConfig", "RetrievalConfig", "TaskConfig"]


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
    data: DataConfig
    optim: OptimConfig
    layer_decay: Share = 1.0
    optimizer: Literal["adamw", "lars", "sgd"] = "adamw"
    folds: Annotated[int, Field(ge=2)] = 5
    fold: Annotated[int, Field(ge=0)] = 0
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _fold_exists(self) -> TaskConfig:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: with folds {self.folds} it is 0 to {self.folds - 1}")
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


TASKS: dict[str, type[TaskConfig]] = {"classification": FinetuneConfig, "retrieval": RetrievalConfig}
"""The configuration of each task, by what ``--task`` and the key ``task`` say."""
