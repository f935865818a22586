"""Scores of answers to questions: by one of VQA's two rules if ten people answered a question, else right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

from ehm.data.questions import Question
from ehm.tasks.vision_language.answers import normalise_answer, shorten_answer, strip_punctuation, take_sentence

__all__ = ["score_answer", "score_answer_exactly", "score_vqa", "score_vqa_exactly"]

_ENOUGH = 3
"""People who must have given an answer for it to count as completely right."""


def score_answer(question: Question, text: str) -> float:
    """Return the score in [0, 1] of ``text``, a model's answer to ``question``, by the paper's rules.

    A yes, no or number is right or wrong. Other answers are compared with those of ten people by :func:`score_vqa` if
    there are votes; otherwise they are right if the normal form of their first sentence is that of a right answer.
    Raises ValueError if the question has no published answers.
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


def score_answer_exactly(question: Question, text: str) -> float:
    """Return the score like :func:`score_answer`, but by VQA's official rule if the question has votes."""
    if question.has_votes:
        return score_vqa_exactly(question.answers, take_sentence(text))
    return score_answer(question, text)


def score_vqa(answers: Sequence[str], given: str) -> float:
    """Return GVT's accuracy, for which the answer of a person matches if it occurs anywhere in the ``given`` one.

    The score is the mean over all people of min(1, m / 3), where m is the number of the other people whose answers
    match. By this rule "no" matches "nothing is on the table", and "1" matches "10".
    """
    known = [strip_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else answers
    normal = normalise_answer(given)
    return _average_over_others([answer.lower() in normal.lower() for answer in known])


def score_vqa_exactly(answers: Sequence[str], given: str) -> float:
    """Return the accuracy of VQAv2's official program, for which the answer of a person has to equal the ``given`` one.

    The normal forms of both are compared, except if all people gave the same answer, which is compared unchanged.
    """
    lines = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    given = given.replace("\n", " ").replace("\t", " ").strip()
    if len(set(lines)) > 1:
        lines = list(map(normalise_answer, lines))
        given = normalise_answer(given)
    return _average_over_others([line == given for line in lines])


def _average_over_others(matches: Sequence[bool]) -> float:
    """Return the mean over all people of min(1, m / 3), where m is the number of matches among the other people."""
    total = sum(matches)
    # for a person whose own answer matches, there is one match less among the others
    accuracy_if_matching = min(1.0, (total - 1) / _ENOUGH)
    accuracy_otherwise = min(1.0, total / _ENOUGH)
    return (total * accuracy_if_matching + (len(matches) - total) * accuracy_otherwise) / len(matches)
