"""Ask a model the questions of benchmarks, about their images and about blank ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Answerer, Backend
from ehm.config import VisionLanguageConfig
from ehm.data import EvalTransform, Source
from ehm.data.questions import Question
from ehm.data.subset import Subset
from ehm.tasks.base import Evaluation
from ehm.tasks.predictions import track_batches
from ehm.tasks.vision_language.benchmarks import Benchmarks
from ehm.tasks.vision_language.examples import write_answers
from ehm.tasks.vision_language.metrics import VisionLanguageReport, report_benchmark
from ehm.tasks.vision_language.predictions import write_predictions
from ehm.training.loaders import make_eval_loader

__all__ = ["AnswererEvaluation"]

_MOST_AT_ONCE = 256
"""Questions that are asked at once, at most."""


class AnswererEvaluation(Evaluation[VisionLanguageReport]):
    """Measures an answerer on the questions of ``subset``, a subset of the questions of ``benchmarks``."""

    unit = "questions"

    def __init__(
        self,
        answerer: Answerer,
        benchmarks: Benchmarks,
        subset: Subset[Source],
        config: VisionLanguageConfig,
        backend: Backend,
    ) -> None:
        self._answerer = answerer
        self._benchmarks = benchmarks
        self._config = config
        self._texts: dict[int, str] = {}
        self._blank_texts: dict[str, str] | None = None
        # sorted by length, so that the questions of a batch need little padding
        lengths = [len(self._find_question(index).text) for index in subset.indices.tolist()]
        by_length = subset.indices[np.argsort(lengths, kind="stable")]
        transform = EvalTransform.from_spec(answerer.image_size, answerer.inputs)
        loader = make_eval_loader(
            subset.source, transform, config, backend.processes, most=_MOST_AT_ONCE, subset=by_length
        )
        super().__init__(benchmarks.name, subset, loader, backend.processes)

    def measure(self, title: str = "") -> VisionLanguageReport:
        """Compare the model's answer to each question with the answers of people."""
        own: dict[int, str] = {}
        for batch in track_batches(self.loader, title):
            prompts = [self._write_prompt(index) for index in batch.indices.tolist()]
            own |= zip(batch.indices.tolist(), self._answerer.answer(batch.images, prompts), strict=True)
        self._texts = {}
        for share in self.processes.gather_values(own):
            self._texts |= share
        indices = np.array(sorted(self._texts), np.int64)
        blank = self._answer_blindly(indices) if self._config.blank else None
        self._blank_texts = blank
        reports = []
        for name, numbers in zip(self._benchmarks.names, self._benchmarks.divide(indices), strict=True):
            questions = list(map(self._find_question, numbers))
            blank_texts = None if blank is None else [blank[self._write_prompt(number)] for number in numbers]
            reports.append(report_benchmark(name, questions, self._list_texts(numbers), blank_texts))
        return VisionLanguageReport(tuple(reports))

    def draw(self, folder: Path) -> None:
        """Write the answers of the last measurement: all for the official programs, and some with their images."""
        indices = np.array(sorted(self._texts), np.int64)
        answered: list[tuple[str, Sequence[Question], Sequence[str]]] = []
        for name, numbers in zip(self._benchmarks.names, self._benchmarks.divide(indices), strict=True):
            answered.append((name, list(map(self._find_question, numbers)), self._list_texts(numbers)))
        write_predictions(folder, answered)
        blank = None
        if self._blank_texts is not None:
            blank = [self._blank_texts[self._write_prompt(index)] for index in indices.tolist()]
        write_answers(folder, self._benchmarks.source, indices.tolist(), self._list_texts(indices.tolist()), blank)

    def _answer_blindly(self, indices: NDArray[np.int64]) -> dict[str, str]:
        """Return the model's answer to each prompt about an image of the mean colour.

        Every process asks all prompts, because there are few different ones.
        """
        different = {self._write_prompt(index) for index in indices.tolist()}
        # by length, so that the prompts of a batch need little padding
        prompts = sorted(different, key=lambda prompt: (len(prompt), prompt))
        height, width = self._answerer.image_size
        colour = np.rint(255 * np.array(self._answerer.inputs.mean)).astype(np.uint8)
        answers: dict[str, str] = {}
        for start in range(0, len(prompts), _MOST_AT_ONCE):
            asked = prompts[start : start + _MOST_AT_ONCE]
            images = np.tile(colour, (len(asked), height, width, 1))
            answers |= zip(asked, self._answerer.answer(images, asked), strict=True)
        return answers

    def _find_question(self, index: int) -> Question:
        return self._benchmarks.source.question(index)

    def _write_prompt(self, index: int) -> str:
        return self._config.language.format_prompt(self._find_question(index).text)

    def _list_texts(self, indices: Sequence[int]) -> list[str]:
        return [self._texts[index] for index in indices]
