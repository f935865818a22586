"""``ehm finetune --task vision_language``: questions about images, and where they come from."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from pydantic import Field

from ehm.config.data import SourceConfig
from ehm.config.section import Section
from ehm.config.values import Positive, PositiveReal, ShareRange

__all__ = ["QuestionLayout", "QuestionSet", "VisionLanguageData"]

QuestionLayout = Literal["auto", "easy_vqa", "vqa", "count", "identify", "gvtbench"]
"""The layouts of questions on disk that are read."""


class QuestionSet(Section):
    """A set of questions about images: one of a mixture to train on, or a benchmark (docs/vision_language.md)."""

    source: str = Field(description="The questions: easy-vqa, or a folder or a file of them (docs/vision_language.md).")
    questions: QuestionLayout = Field(
        "auto",
        description="How the questions are laid out, or for annotated objects which are made of them, count or "
        "identify; auto finds out.",
    )
    images: str | None = Field(
        None, description="Folder of the images; null looks for them where the layout of the questions has them."
    )
    weight: PositiveReal = Field(
        1.0, description="Number of times that each question of the set occurs in an epoch; 0.1 takes a tenth of them."
    )
    limit: Positive | None = Field(
        None,
        description="Largest number of questions, drawn once at random; null takes all, and 10,000 of those that are "
        "made of annotated objects to measure on.",
    )
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
    questions: QuestionLayout = Field(
        "auto",
        description="How the questions are laid out, or for annotated objects which are made of them, count or "
        "identify; auto finds out.",
    )
    images: str | None = Field(
        None, description="Folder of the images; null looks for them where the layout of the questions has them."
    )
    limit: Positive | None = Field(
        None,
        description="Largest number of questions, drawn once at random; null takes all, and 10,000 of those that are "
        "made of annotated objects to measure on.",
    )
    sets: tuple[QuestionSet, ...] = Field(
        (), description="Further sets of questions that are mixed in to train on, each with its weight."
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
