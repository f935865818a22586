"""``ehm language train``: the configuration of a tiny language model that learns to read from text alone."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ehm.config.language import LanguageConfig
from ehm.config.section import Section
from ehm.config.sections import OptimConfig, RunConfig
from ehm.config.tasks.vision_language import QuestionSet
from ehm.config.values import Positive, Unit

__all__ = ["LanguageTrainingConfig", "TextConfig"]


class TextConfig(Section):
    """``text``: the documents that are read, each a sentence about an image and questions about it."""

    facts: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("colour", "shape"),
        description="Kinds of questions whose answers, in this order, are the sentence about an image; images without "
        "an answer of each kind are left out.",
    )
    questions: Positive = Field(3, description="Number of questions of a document.")
    other_weight: Unit = Field(0.1, description="Weight in the loss of words that are no answers.")
    before: str = Field("The image shows a ", description="Words before the facts, as language.before later.")
    after: str = Field(".", description="Words after the facts, as language.after later.")
    prompt: str = Field(
        "Question: {question} Answer:", description="Words around a question, as language.prompt later."
    )

    @property
    def words(self) -> LanguageConfig:
        """The words around an image, as a task has them that takes the model."""
        return LanguageConfig(before=self.before, after=self.after, prompt=self.prompt)

    @model_validator(mode="after")
    def _check_prompt(self) -> TextConfig:
        _ = self.words  # which has the check
        return self


class LanguageTrainingConfig(Section):
    """A run of ``ehm language train``: a tiny Llama that never sees an image.

    It is a stand-in for a real language model, for examples and tests: its words are those of its data set.
    """

    data: QuestionSet = QuestionSet(source="easy-vqa")
    text: TextConfig = TextConfig()
    width: Positive = Field(64, description="Number of features of a word.")
    depth: Positive = Field(2, description="Number of layers.")
    heads: Positive = Field(4, description="Number of attention heads.")
    optim: OptimConfig = OptimConfig(
        steps=1000,
        batch_size=32,
        base_lr=0.024,  # 3e-3 for 32 documents
        min_lr=6e-5,
        warmup_steps=50,
        schedule="linear",
        weight_decay=0.01,
        betas=(0.9, 0.98),
        clip_grad=1.0,
        dtype="float32",
    )
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _check_together(self) -> LanguageTrainingConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.optim.ema_decay is not None:
            raise ValueError("optim.ema_decay: only pretraining has a moving average; leave it out")
        return self
