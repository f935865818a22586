"""``ehm finetune`` and ``ehm probe``: the configuration of classifiers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ehm.config.data import DataConfig
from ehm.config.section import Section
from ehm.config.sections import ModelSource, OptimConfig
from ehm.config.tasks.base import TaskConfig
from ehm.config.values import BelowOne, NotNegative, Positive, PositiveReal, Share, Unit

__all__ = ["PROBE_FIGURES", "AugmentConfig", "FinetuneConfig", "ProbeConfig"]

PROBE_FIGURES = ("knn", "linear", "rankme")
"""The figures of a probe that ``--only`` may select."""


class AugmentConfig(Section):
    """``augment``: how training images vary beyond crop and flip. The defaults are MAE's fine-tuning recipe."""

    rand_augment: str | None = Field(
        "rand-m9-mstd0.5-inc1", description="RandAugment in timm's notation; null switches it off."
    )
    mixup: NotNegative = Field(0.8, description="Parameter of the beta distribution of Mixup; 0 switches it off.")
    cutmix: NotNegative = Field(1.0, description="Parameter of the beta distribution of CutMix; 0 switches it off.")
    label_smoothing: BelowOne = Field(0.1, description="Share of the target that is spread over all classes.")
    random_erasing: Unit = Field(0.25, description="Probability that a rectangle of an image is erased.")


class FinetuneConfig(TaskConfig):
    """Supervised training of a classifier, on stratified folds. The defaults are MAE's published recipe for ViT-B."""

    task: Literal["classification"] = "classification"
    model: ModelSource = ModelSource(drop_path=0.1)
    data: DataConfig = DataConfig(crop_scale=(0.08, 1))
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig(
        epochs=100, batch_size=1024, base_lr=5e-4, min_lr=1e-6, warmup_epochs=5, betas=(0.9, 0.999)
    )
    pool: Literal["avg", "token", "map"] = Field(
        "avg",
        description="What the head sees: the mean of the patch tokens (avg), the class token (token), or what a "
        "learned query takes of the patches (map), as in SigLIP.",
    )
    loss: Literal["auto", "cross_entropy", "binary_cross_entropy"] = Field(
        "auto",
        description="The loss: cross entropy for one class an image, or binary cross entropy for several labels; auto "
        "takes what goes with the labels of data.source.",
    )
    class_weights: Literal["balanced"] | Annotated[tuple[PositiveReal, ...], Field(min_length=2)] | None = Field(
        None,
        description="Weight of each class in the loss, in the order of the classes; balanced weighs a class by the "
        "inverse of its number of images, null weighs all alike.",
    )
    sampling: Literal["natural", "balanced"] = Field(
        "natural",
        description="How training images are drawn: each once an epoch (natural), or at random so that all classes "
        "occur equally often (balanced).",
    )
    layer_decay: Share = 0.65
    frozen: bool = Field(False, description="Whether the encoder stays as it is and only the head is trained.")

    @model_validator(mode="after")
    def _check_frozen(self) -> FinetuneConfig:
        if self.frozen and self.model.freeze:
            raise ValueError("model.freeze: the whole encoder stays as it is when only the head is trained; leave it 0")
        if self.frozen and self.lora.rank is not None:
            raise ValueError("lora.rank: the encoder stays as it is when only the head is trained; leave it null")
        return self


class ProbeConfig(FinetuneConfig):
    """Linear probing as in MAE (appendix A.1): frozen encoder, BatchNorm without affine, LARS, crop and flip only."""

    model: ModelSource = ModelSource()
    augment: AugmentConfig = AugmentConfig(rand_augment=None, mixup=0, cutmix=0, label_smoothing=0, random_erasing=0)
    optim: OptimConfig = OptimConfig(
        epochs=90, batch_size=16384, base_lr=0.1, warmup_epochs=10, weight_decay=0, betas=(0.9, 0.999)
    )
    pool: Literal["avg", "token", "map"] = "token"
    # No layer of a frozen encoder learns, so there is no rate to decay.
    layer_decay: Annotated[float, Field(ge=1, le=1)] = 1.0
    frozen: Literal[True] = True
    optimizer: Literal["adamw", "lars", "sgd"] = "lars"
    neighbours: Positive = Field(20, description="Number of nearest neighbours that vote in the k-NN measurement.")
    neighbours_pool: Literal["avg", "token", "map"] | None = Field(
        None,
        description="The features that nearest neighbours are compared by, as for pool; null takes the mean of the "
        "patch tokens, and of timm:NAME what that network gives.",
    )
