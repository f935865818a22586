"""Several sets of questions as one source, in which an epoch has the questions of each as often as its weight says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config import VisionLanguageData
from ehm.data.questions import Question, QuestionSource
from ehm.data.repetition import repeat_by_weight
from ehm.data.sources.base import Split, WithoutClasses
from ehm.data.sources.questions.drawing import DRAWING_SEED
from ehm.data.sources.questions.layouts import open_questions
from ehm.data.sources.questions.messages import QuestionPart

__all__ = ["MixedQuestions", "mix_questions", "open_data_questions", "weigh_questions"]


@dataclass(frozen=True)
class MixedQuestions(WithoutClasses):
    """The questions of ``sources`` one behind the other; ``ends`` are the numbers at which each of them ends."""

    sources: tuple[QuestionSource, ...]
    ends: tuple[int, ...]
    split: Split
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return self.ends[-1]

    def question(self, index: int) -> Question:
        """Return the question of this number."""
        source, own = self._locate(index)
        return source.question(own)

    def load(self, index: int) -> Image.Image:
        """Read the image of a question in RGB; raises BrokenImage with its path and the reason."""
        source, own = self._locate(index)
        return source.load(own)

    def name(self, index: int) -> str:
        """Return the path of the image of a question."""
        source, own = self._locate(index)
        return source.name(own)

    def may_flip(self, index: int) -> bool:
        """Return whether the answer stays right if the image is mirrored left to right."""
        source, own = self._locate(index)
        return source.may_flip(own)

    @property
    def fingerprint(self) -> bytes:
        """The fingerprints of all sets, one behind the other."""
        return b"".join(source.fingerprint for source in self.sources)

    def _locate(self, index: int) -> tuple[QuestionSource, int]:
        """Return the source of a question and its number there."""
        place = int(np.searchsorted(self.ends, index, side="right"))
        first = self.ends[place - 1] if place else 0
        return self.sources[place], index - first


def open_data_questions(
    data: VisionLanguageData, part: QuestionPart
) -> tuple[QuestionSource, NDArray[np.int64] | None]:
    """Open the questions of ``data``: a source, and the indices of an epoch, None for all of them once.

    ``data.sets`` are mixed in to train on; what is measured are the questions of ``data.source`` alone.
    """
    first = open_questions(data.first_set, part, data.range)
    if part == "validation" or not data.sets:
        return first, None
    sources = [first]
    weights = [1.0]
    for each in data.sets:
        sources.append(open_questions(each, part, data.range))
        weights.append(each.weight)
    mixed = mix_questions(sources)
    return mixed, weigh_questions([len(source) for source in sources], weights)


def mix_questions(sources: Sequence[QuestionSource]) -> MixedQuestions:
    """Return the questions of several sources as one, whose part is that of the first."""
    ends = np.cumsum([len(source) for source in sources]).tolist()
    notes: list[str] = []
    for source in sources:
        notes += source.notes
    return MixedQuestions(tuple(sources), tuple(ends), sources[0].split, tuple(notes))


def weigh_questions(counts: Sequence[int], weights: Sequence[float]) -> NDArray[np.int64]:
    """Return the indices of an epoch, in which the questions of each set occur as often as its weight says.

    ``counts`` are the numbers of questions of the sets, one behind the other. Of a weight of 2.3 all occur twice, and
    three tenths of them, drawn once, a third time: the same ones in every epoch and run.
    """
    indices = []
    first = 0
    for number, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        indices.append(repeat_by_weight(np.arange(first, first + count), weight, [DRAWING_SEED, number]))
        first += count
    return np.concatenate(indices)
