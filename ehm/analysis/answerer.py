"""Ask a trained vision-language model questions, and draw its answers with the attention of its resampler's latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm import backends
from ehm.analysis.answers import PicturedAnswer, draw_answers_page
from ehm.backends.base import Answerer
from ehm.config import LoraConfig, QuestionSet, VisionLanguageConfig
from ehm.data import EvalTransform, decode_image
from ehm.data.decoding.depth import ValueRange
from ehm.data.questions import Question
from ehm.data.sources.questions.layouts import open_questions
from ehm.errors import CheckpointError
from ehm.models.language_folder import check_same_language_model
from ehm.models.opening import take_weights
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import find_checkpoint

__all__ = ["InspectedAnswerer", "choose_questions", "draw_answer_pages", "open_answerer"]

_KIND = "answerer"
_NOTES = (
    "Below an image: the question, the model's answer, the right answer, and the model's answer about a blank image.",
    "Beside it: the attention of each latent to each patch in the last layer of the resampler, mean over heads, as a "
    "share of its largest value.",
)


@dataclass(frozen=True)
class InspectedAnswerer:
    """A vision-language model in the state of a checkpoint; ``origin`` describes the checkpoint for messages."""

    learner: Answerer
    config: VisionLanguageConfig
    origin: str
    value_range: ValueRange


def open_answerer(path: str, device: str) -> InspectedAnswerer:
    """Open the run or checkpoint at ``path``; raises CheckpointError if it holds no vision-language model."""
    checkpoint = find_checkpoint(path) if Path(path).is_dir() else None
    if checkpoint is None or checkpoint.kind != _KIND:
        raise CheckpointError(
            f"{path}: holds no model that answers questions; give the folder of a run of ehm finetune "
            "--task vision_language, or one of its checkpoints"
        )
    metadata = checkpoint.metadata
    config = VisionLanguageConfig.model_validate(metadata["config"])
    # checkpoints hold the weights of a plain network: a frozen part or LoRA only matters to training
    model = config.model.model_copy(update={"init": str(checkpoint.folder), "freeze": 0})
    config = config.model_copy(update={"model": model, "lora": LoraConfig()})
    learner: Answerer = backends.get(device).create_task_learner(config, 0, take_weights(checkpoint))
    check_same_language_model(metadata["language"], learner.language, checkpoint.folder)
    learner.load(LearnerState(checkpoint.model, {}))
    origin = f"{path} (step {metadata['step']:,}, epoch {metadata['epoch']:.4g})"
    return InspectedAnswerer(learner, config, origin, checkpoint.value_range)


def choose_questions(model: InspectedAnswerer, source: str, count: int, seed: int) -> list[Question]:
    """Draw ``count`` of the validation questions of a set by ``seed``, or all if there are no more.

    ``source`` is the source or the title of a set of the model's run, or the source of another set.
    """
    chosen_set = QuestionSet(source=source)
    for known in (model.config.data.first_set, *model.config.benchmarks):
        if source in (known.source, known.title):
            chosen_set = known
    questions = open_questions(chosen_set, "validation", model.value_range)
    count = min(count, len(questions))
    chosen = np.random.default_rng(seed).choice(len(questions), count, replace=False)
    return [questions.question(index) for index in np.sort(chosen).tolist()]


def draw_answer_pages(model: InspectedAnswerer, questions: Sequence[Question], per_page: int) -> Iterator[Image.Image]:
    """Yield a page for each ``per_page`` of ``questions``: images, answers, and the attention of the latents."""
    for first in range(0, len(questions), per_page):
        asked = questions[first : first + per_page]
        yield draw_answers_page(_answer_questions(model, asked), f"Answers of {model.origin}", _NOTES)


def _answer_questions(model: InspectedAnswerer, questions: Sequence[Question]) -> list[PicturedAnswer]:
    """Ask ``questions`` about their images, and again about images of the mean colour, for comparison."""
    learner = model.learner
    transform = EvalTransform.from_spec(learner.image_size, learner.inputs)
    pictures = [transform(decode_image(each.image, value_range=model.value_range)) for each in questions]
    images = np.stack(pictures)
    prompts = [model.config.language.format_prompt(each.text) for each in questions]
    colour = np.rint(255 * np.array(learner.inputs.mean)).astype(np.uint8)
    blank = np.broadcast_to(colour, images.shape)
    given = learner.answer(images, prompts)
    given_blank = learner.answer(np.ascontiguousarray(blank), prompts)
    attention = _scale_to_largest(learner.locate_latents(images))
    answers = []
    for index, question in enumerate(questions):
        answers.append(
            PicturedAnswer(
                image=images[index],
                question=question.text,
                given=given[index],
                truth=question.truth,
                blank=given_blank[index],
                latent_attention=attention[index],
            )
        )
    return answers


def _scale_to_largest(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the attention (B, K, h, w) of K latents to the patches as shares of the largest weight of each latent."""
    largest = weights.max(axis=(2, 3), keepdims=True)
    scaled: NDArray[np.float32] = weights / np.maximum(largest, np.finfo(np.float32).tiny)
    return scaled
