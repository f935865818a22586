"""``ehm finetune --task vision_language``: questions about images, and where they come from."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ehm.config.data import SourceConfig
from ehm.config.inputs import CropMode
from ehm.config.language import LanguageConfig, ResamplerConfig
from ehm.config.section import Section
from ehm.config.sections import ModelSource, OptimConfig
from ehm.config.tasks.base import TaskConfig
from ehm.config.values import Positive, PositiveReal, ShareRange

__all__ = ["QuestionLayout", "QuestionSet", "VisionLanguageConfig", "VisionLanguageData"]

QuestionLayout = Literal["auto", "easy_vqa", "vqa", "count", "identify", "gvtbench"]
"""The layouts of questions on disk that are read."""
_ChosenLayout = Annotated[
    QuestionLayout,
    Field(
        description="How the questions are laid out, or for annotated objects which are made of them, count or "
        "identify; auto finds out."
    ),
]
_ImageFolder = Annotated[
    str | None,
    Field(description="Folder of the images; null looks for them where the layout of the questions has them."),
]
_QuestionLimit = Annotated[
    Positive | None,
    Field(
        description="Largest number of questions, drawn once at random; null takes all, and 10,000 of those that are "
        "made of annotated objects to measure on."
    ),
]


def _read_off(value: Any) -> Any:
    # YAML takes the word for false
    return "off" if value is False else value


class QuestionSet(Section):
    """A set of questions about images: one of a mixture to train on, or a benchmark (docs/vision_language.md)."""

    source: str = Field(description="The questions: easy-vqa, or a folder or a file of them (docs/vision_language.md).")
    questions: _ChosenLayout = "auto"
    images: _ImageFolder = None
    weight: PositiveReal = Field(
        1.0, description="Number of times that each question of the set occurs in an epoch; 0.1 takes a tenth of them."
    )
    limit: _QuestionLimit = None
    name: str | None = Field(None, description="Name of the set in the figures; null takes that of the source.")

    @property
    def title(self) -> str:
        """The name of the set in the figures."""
        if self.name is not None:
            return self.name
        title = PurePath(self.source).stem or self.source
        # both kinds of questions may be made of the same objects
        return f"{title} {self.questions}" if self.questions in ("count", "identify") else title


class VisionLanguageData(SourceConfig):
    """``data`` of vision_language: the questions to train on, and how their images are prepared."""

    source: str = Field(
        "easy-vqa", description="The questions: easy-vqa, or a folder or a file of them (docs/vision_language.md)."
    )
    questions: _ChosenLayout = "auto"
    images: _ImageFolder = None
    limit: _QuestionLimit = None
    sets: tuple[QuestionSet, ...] = Field(
        (), description="Further sets of questions that are mixed in to train on, each with its weight."
    )
    crop_mode: CropMode = Field(
        "squash",
        description="How an image is brought to the size of the encoder when it is measured: squash keeps all of it "
        "and changes the proportions, center cuts off what is over, border fills with the mean.",
    )
    crop_pct: Annotated[float, Field(gt=0, le=2)] = Field(
        1.0, description="Size of the crop as a share of the size that an image is resized to when it is measured."
    )
    crop_scale: ShareRange = Field(
        (0.5, 1), description="Smallest and largest area of a random crop in training, as a share of the image."
    )
    flip: bool = Field(
        True,
        description="Whether half of the training images are mirrored left to right; not where a question or its "
        "answers say left or right.",
    )

    @property
    def first_set(self) -> QuestionSet:
        """The set that ``source``, ``questions``, ``images`` and ``limit`` describe."""
        return QuestionSet(source=self.source, questions=self.questions, images=self.images, limit=self.limit)


class VisionLanguageConfig(TaskConfig):
    """A Perceiver Resampler, and the encoder too, as the eyes of a frozen language model (paper, Table VII).

    The defaults are GVT's as far as they are published, with MiniGPT-4's number of steps.
    """

    task: Literal["vision_language"] = "vision_language"
    model: ModelSource = ModelSource()
    data: VisionLanguageData = VisionLanguageData()
    frozen: bool = Field(False, description="Whether the encoder stays as it is and only the resampler is trained.")
    cache_features: Annotated[Literal["auto", "off"], BeforeValidator(_read_off)] = Field(
        "auto",
        description="Whether a frozen encoder's tokens are kept on the disk, so that it sees each image once; auto "
        "does if images are neither cropped nor mirrored and they take up to 4 GB and a quarter of the free disk.",
    )
    encoder_rate: PositiveReal = Field(
        1.0, description="Factor of the learning rate for the encoder, which wants a lower one than the resampler."
    )
    resampler: ResamplerConfig = ResamplerConfig()
    language: LanguageConfig = LanguageConfig()
    benchmarks: tuple[QuestionSet, ...] = Field(
        (), description="Sets of questions to measure on; none takes the validation part of data.source."
    )
    blank: bool = Field(
        True,
        description="Whether questions are also asked about blank images, which shows how much the words alone tell.",
    )
    optim: OptimConfig = OptimConfig(
        steps=20_000, batch_size=256, base_lr=1e-4, warmup_steps=2000, betas=(0.9, 0.98), clip_grad=1.0
    )
    optimizer: Literal["adamw"] = "adamw"

    @property
    def sees_same_images(self) -> bool:
        """True if the encoder stays as it is and nothing random is done to its images."""
        return self.frozen and self.data.crop_scale == (1, 1) and not self.data.flip

    @model_validator(mode="after")
    def _check_together(self) -> VisionLanguageConfig:
        if self.frozen:
            for key, is_set in (
                ("model.freeze", self.model.freeze),
                ("lora.rank", self.lora.rank is not None),
                ("model.drop_path", self.model.drop_path),
            ):
                if is_set:
                    raise ValueError(f"{key}: the encoder stays as it is if frozen is true; leave it out")
        if self.optim.ema_decay is not None:
            raise ValueError("optim.ema_decay: vision_language keeps no moving average; leave it out")
        if self.run.parallel == "fsdp":
            raise ValueError("run.parallel fsdp: vision_language trains with ddp only")
        if self.fold or self.folds != TaskConfig.model_fields["folds"].default:
            raise ValueError("folds, fold: questions have parts of their own, or benchmarks; leave them out")
        return self
