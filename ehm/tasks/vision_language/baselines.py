"""Baselines that need no images and no model: the score of always giving the commonest answer.

Many questions nearly always have the same answer: in GVTBench's vcr_mci, 85.8 % of the questions are answered right by
the commonest answer to the name of the object, whatever the image shows. Reports have these figures beside each result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ehm.data.questions import Question
from ehm.tasks.vision_language.answers import normalise_answer, shorten_answer
from ehm.tasks.vision_language.scores import score_answer

__all__ = ["find_commonest_answer", "score_commonest"]


def score_commonest(questions: Sequence[Question], group_of: Callable[[Question], str]) -> float:
    """Return the mean score of giving every question the commonest answer of its group, ``group_of(question)``.

    Answers are counted in these same questions, so this is the highest score of constant answers (by the rules of VQA,
    nearly the highest).
    """
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(group_of(question), []).append(question)
    total = 0.0
    for members in groups.values():
        answer = find_commonest_answer(members)
        total += sum(score_answer(question, answer) for question in members)
    return total / len(questions)


def find_commonest_answer(questions: Sequence[Question]) -> str:
    """Return the answer that people gave most often, in its normal form; the first of several equally common ones."""
    counts: Counter[str] = Counter()
    for question in questions:
        for answer in question.answers:
            if question.rule == "text":
                counts[normalise_answer(answer)] += 1
            else:
                counts[shorten_answer(answer, question.rule)] += 1
    return counts.most_common(1)[0][0]
