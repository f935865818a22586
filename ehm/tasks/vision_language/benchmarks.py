"""The sets of questions that a model is measured on, as one source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ehm.config import VisionLanguageConfig
from ehm.data import Source
from ehm.data.sources.questions.layouts import open_questions
from ehm.data.sources.questions.mixture import MixedQuestions, mix_questions
from ehm.data.subset import Subset

__all__ = ["Benchmarks", "open_benchmarks"]


@dataclass(frozen=True)
class Benchmarks:
    """Sets of questions, one after the other in ``source``, and their ``names`` in figures."""

    source: MixedQuestions
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The names of all sets together."""
        return ", ".join(self.names)

    def select_all(self) -> Subset[Source]:
        """Return all questions of all sets."""
        title = "val" if len(self.names) == 1 else f"{len(self.names)} benchmarks"
        return Subset(cast(Source, self.source), None, title)

    def divide(self, indices: NDArray[np.int64]) -> list[list[int]]:
        """Divide ``indices`` into one list for each set."""
        numbers = np.searchsorted(self.source.ends, indices, side="right")
        return [indices[numbers == number].tolist() for number in range(len(self.names))]


def open_benchmarks(config: VisionLanguageConfig) -> Benchmarks:
    """Open the questions of ``benchmarks``, or if there are none the validation part of ``data.source``.

    Raises DataError as :func:`open_questions` does.
    """
    sets = config.benchmarks or (config.data.first_set,)
    sources = [open_questions(each, "validation", config.data.range) for each in sets]
    return Benchmarks(mix_questions(sources), tuple(each.title for each in sets))
