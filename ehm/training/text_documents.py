"""Text documents about images: a sentence made of the answers about an image, and questions about it.

They train a language model without images (:mod:`ehm.training.language`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ehm.backends.base import Piece
from ehm.config.language_training import TextConfig
from ehm.data.questions import Question, QuestionSource
from ehm.errors import DataError

__all__ = ["Description", "describe_images", "draw_documents", "list_texts"]

_STREAM = 7
"""The first number of the seed of documents, so that other draws with the seed of the run are independent of them."""


@dataclass(frozen=True)
class Description:
    """An image in words: its facts in a sentence, and the questions about it."""

    facts: str
    questions: tuple[Question, ...]


def describe_images(source: QuestionSource, config: TextConfig, name: str) -> list[Description]:
    """Return a description of each image of ``source`` that has an answer for each kind of question in ``text.facts``.

    Raises DataError if there is no such image; ``name`` is the name of the source in the message.
    """
    by_image: dict[str, list[Question]] = {}
    for index in range(len(source)):
        question = source.question(index)
        by_image.setdefault(question.image, []).append(question)
    descriptions = []
    kinds: set[str] = set()
    for questions in by_image.values():
        facts: dict[str, str] = {}
        for question in questions:
            if question.answers:
                facts.setdefault(question.kind, question.answers[0])
        kinds |= facts.keys()
        if facts.keys() >= set(config.facts):
            words = " ".join(facts[kind] for kind in config.facts)
            descriptions.append(Description(words, tuple(questions)))
    if not descriptions:
        raise DataError(
            f"data.source {name}: no image has answers of all kinds of text.facts ({', '.join(config.facts)}); there "
            f"are {', '.join(sorted(kinds)) or 'none'}"
        )
    return descriptions


def draw_documents(
    descriptions: Sequence[Description], config: TextConfig, count: int, seed: int, step: int
) -> list[list[Piece]]:
    """Draw ``count`` documents for a step: the sentence about an image, and some of its questions with answers."""
    rng = np.random.default_rng([_STREAM, seed, step])
    words = config.words
    documents = []
    for index in rng.integers(len(descriptions), size=count).tolist():
        description = descriptions[index]
        document = [Piece(describe_facts(description.facts, config))]
        for number in rng.permutation(len(description.questions))[: config.questions].tolist():
            question = description.questions[number]
            document.append(Piece(f" {words.format_prompt(question.text)}"))
            document.append(Piece(f" {question.answers[0]}", is_answer=True))
        documents.append(document)
    return documents


def describe_facts(facts: str, config: TextConfig) -> str:
    """Return the sentence about an image; with empty ``facts`` it says nothing about it."""
    return f"{config.before}{facts}{config.after}"


def list_texts(descriptions: Sequence[Description], config: TextConfig) -> list[str]:
    """Return texts that together contain every word of all documents."""
    texts = {describe_facts("", config), config.words.format_prompt("")}
    for description in descriptions:
        texts.add(description.facts)
        for question in description.questions:
            texts |= {question.text, *question.answers}
    return sorted(texts)
