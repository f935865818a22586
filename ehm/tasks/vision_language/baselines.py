"""Figures that language alone reaches, without any model: they stand beside every result.

Many questions have one answer nearly always: in GVTBench's vcr_mci 85.8 % are answered rightly if each name of an
object gets its commonest answer, whatever the image shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ehm.data.questions import Question
from ehm.tasks.vision_language.answers import normalise_answer, shorten_answer
from ehm.tasks.vision_language.scores import score

__all__ = ["find_commonest_answer", "score_commonest"]


def score_commonest(questions: Sequence[Question], group_of: Callable[[Question], str]) -> float:
    """Return the mean score if every question got the commonest answer of its group, which ``group_of`` names.

    The answers are counted in the same questions: it is the most that constant answers reach, or nearly so by the rules
    of VQA.
    """
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(group_of(question), []).append(question)
    total = 0.0
    for members in groups.values():
        answer = find_commonest_answer(members)
        total += sum(score(question, answer) for question in members)
    return total / len(questions)


def find_commonest_answer(questions: Sequence[Question]) -> str:
    """Return the answer that people gave most often, in its normal form; of equally common ones the first."""
    counts: Counter[str] = Counter()
    for question in questions:
        for answer in question.answers:
            if question.rule == "text":
                counts[normalise_answer(answer)] += 1
            else:
                counts[shorten_answer(answer, question.rule)] += 1
    return counts.most_common(1)[0][0]
