"""The score of an answer to a question: by VQA's two rules if ten people answered, else right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

from ehm.data.questions import Question
from ehm.tasks.vision_language.answers import normalise_answer, shorten_answer, strip_punctuation, take_sentence

__all__ = ["score", "score_exactly", "score_vqa", "score_vqa_exactly"]

_ENOUGH = 3
"""People who must have given an answer for it to count as right."""


def score(question: Question, text: str) -> float:
    """Return the score, from 0 to 1, of what a model wrote as an answer to ``question``, by the paper's rules.

    A yes, no or number is right or wrong. A text is compared with the answers of ten people by :func:`score_vqa`, or
    else right if its first sentence equals an answer in its normal form. Raises ValueError if there are no answers.
    """
    if not question.answers:
        raise ValueError(f"question {question.identifier}: its answers are not published, so nothing can be compared")
    given = shorten_answer(text, question.rule)
    if question.rule != "text":
        right = {shorten_answer(answer, question.rule) for answer in question.answers}
        return float(given != "" and given in right)
    if question.has_votes:
        return score_vqa(question.answers, given)
    return float(normalise_answer(given) in set(map(normalise_answer, question.answers)))


def score_exactly(question: Question, text: str) -> float:
    """Return the score as :func:`score` does, by VQA's official rule if people voted."""
    if question.has_votes:
        return score_vqa_exactly(question.answers, take_sentence(text))
    return score(question, text)


def score_vqa(answers: Sequence[str], given: str) -> float:
    """Return GVT's accuracy: an answer of a person counts if it occurs anywhere in what was ``given``.

    For each person the accuracy is the number of the others' answers that do, over three and 1 at most; the score is
    the mean over all. "no" therefore occurs in "nothing is on the table", and "1" in "10".
    """
    known = [strip_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else answers
    normal = normalise_answer(given)
    return _average_over_others([answer.lower() in normal.lower() for answer in known])


def score_vqa_exactly(answers: Sequence[str], given: str) -> float:
    """Return the accuracy of VQAv2's official program: an answer of a person counts if it equals what was ``given``.

    Both are in their normal form, unless all people gave the same answer: then the program compares them as they stand.
    """
    lines = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    given = given.replace("\n", " ").replace("\t", " ").strip()
    if len(set(lines)) > 1:
        lines = list(map(normalise_answer, lines))
        given = normalise_answer(given)
    return _average_over_others([line == given for line in lines])


def _average_over_others(matches: Sequence[bool]) -> float:
    """Return the mean, over all people, of the accuracy that the others' answers give."""
    total = sum(matches)
    with_match = min(1.0, (total - 1) / _ENOUGH)  # a person whose own answer matches is not counted
    without = min(1.0, total / _ENOUGH)
    return (total * with_match + (len(matches) - total) * without) / len(matches)
