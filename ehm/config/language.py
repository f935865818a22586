"""The sections that describe a language model, and the way from an encoder's tokens into it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ehm.config.section import Section
from ehm.config.values import Positive, PositiveReal

__all__ = ["LanguageConfig", "ResamplerConfig"]

QUESTION = "{question}"
"""The place of the question in ``language.prompt``."""


class ResamplerConfig(Section):
    """``resampler``: Flamingo's Perceiver Resampler; the defaults are those of GVT."""

    latents: Positive = Field(32, description="Number of visual tokens that the language model reads for an image.")
    depth: Positive = Field(6, description="Number of layers of the resampler.")
    heads: Positive = Field(16, description="Number of attention heads of a layer of the resampler.")
    head_width: Positive = Field(96, description="Number of features of an attention head of the resampler.")
    mlp_ratio: PositiveReal = Field(
        4.0, description="Hidden features of the resampler's MLPs for each feature of a token."
    )


class LanguageConfig(Section):
    """``language``: the frozen language model, and the words around an image and a question."""

    source: str = Field(
        "runs/language",
        description="Folder of the language model: one in Hugging Face's layout, with weights as .safetensors, or a "
        "run of ehm language train.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the language model; auto takes what suits the device."
    )
    before: str = Field("<Img> ", description="Words before the visual tokens.")
    after: str = Field("</Img>", description="Words after the visual tokens, before the prompt.")
    prompt: str = Field(
        "Question: {question} Answer:", description="Words around a question, which stands at {question}."
    )
    chat: bool = Field(
        False,
        description="Whether image and prompt are put into the chat template of the language model, as models tuned to "
        "chat expect it.",
    )
    most: Positive = Field(32, description="Largest number of tokens of an answer.")

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str) -> str:
        if QUESTION not in value:
            raise ValueError(f"should contain {QUESTION}, the place of the question")
        return value

    def format_prompt(self, question: str) -> str:
        """Return the prompt for a question."""
        return self.prompt.replace(QUESTION, question)
