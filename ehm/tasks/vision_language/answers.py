"""Find the answer in the text of a language model: a first sentence, a yes or no, or a number; and VQA's normal form.

The rules are those of GVT's evaluation as the paper describes them (V-B). Words are compared as a whole, unlike in
GVT's published code, which finds "no" in "now" and "one" in "none". Case is ignored.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ehm.data.questions import Rule

__all__ = ["find_number", "find_yes_or_no", "normalise_answer", "shorten_answer", "strip_punctuation", "take_sentence"]

_SENTENCE_END = re.compile(r"(?<!\d)\.|\.(?!\d)")
"""A full stop, unless it stands between two digits."""
_YES_OR_NO = re.compile(r"\b(yes|no)\b")
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NUMBERS = {word: number for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": 0}
_NUMBER = re.compile(rf"\b(\d+|{'|'.join(_NUMBERS)})\b")
_MOST_DIGITS = 9
"""Digits of a number that are read: enough for any count, and Python refuses to convert thousands of them."""
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")

# The normal form of the official program of VQAv2 (GT-Vision-Lab/VQA), including its peculiarities.
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_LAST_FULL_STOPS = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32
"""Full stops that are removed, at most: the program passes re.UNICODE (32) as the argument ``count`` of re.sub."""
_ARTICLES = frozenset({"a", "an", "the"})
_DIGITS = {word: str(number) for word, number in _NUMBERS.items() if number <= 10}
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't "
    "he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've "
    "mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've "
    "somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd "
    "something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're "
    "they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've "
    "who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all "
    "y'all'd've y'all'll you'd you'd've you'll you're you've"
)


def _list_misspellings() -> dict[str, str]:
    """Return the contractions by their spellings without one of the apostrophes."""
    found = {}
    for contraction in _CONTRACTIONS.split():
        for position, sign in enumerate(contraction):
            if sign == "'":
                found[contraction[:position] + contraction[position + 1 :]] = contraction
    # the only entry of the program that removes an apostrophe
    found["somebody'd"] = "somebodyd"
    return found


_MISSPELLINGS = _list_misspellings()


def shorten_answer(text: str, rule: Rule) -> str:
    """Return the answer in ``text`` by the ``rule`` of its question: its first sentence, or a word or number in it.

    Returns "" if there is no answer, except for numbers, which default to 0.
    """
    if rule == "yes_no":
        return find_yes_or_no(text)
    if rule == "number":
        return str(find_number(text))
    return take_sentence(text)


def take_sentence(text: str) -> str:
    """Return the first sentence of ``text`` without its full stop; line ends become spaces."""
    line = " ".join(text.splitlines()).strip().removeprefix(".")
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip()


def find_yes_or_no(text: str) -> str:
    """Return the first of the words yes and no in the first sentence, "" if it has neither."""
    found = _YES_OR_NO.search(take_sentence(text).lower())
    return found[1] if found else ""


def find_number(text: str) -> int:
    """Return the first number in the first sentence, in digits or as a word up to twenty; 0 if it has none."""
    found = _NUMBER.search(_COMMA_IN_NUMBER.sub("", take_sentence(text).lower()))
    if found is None:
        return 0
    word = found[1]
    return _NUMBERS[word] if word in _NUMBERS else int(word[:_MOST_DIGITS])


@lru_cache(maxsize=1 << 16)  # short answers are often the same
def normalise_answer(text: str) -> str:
    """Return ``text`` in the normal form of VQAv2's official program: without punctuation, articles, number words."""
    words = []
    for word in strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split():
        word = _DIGITS.get(word, word)
        if word not in _ARTICLES:
            words.append(_MISSPELLINGS.get(word, word))
    return " ".join(words)


@lru_cache(maxsize=1 << 16)
def strip_punctuation(text: str) -> str:
    """Remove punctuation from ``text`` by the rules of VQAv2's official program.

    A sign is removed if it is beside a space anywhere in the text, or if there is a comma between digits anywhere.
    Otherwise it is replaced by a space. Full stops are removed unless a digit follows.
    """
    joined = _COMMA_BETWEEN_DIGITS.search(text) is not None
    stripped = text
    for sign in _SIGNS:
        is_beside_space = f"{sign} " in text or f" {sign}" in text
        stripped = stripped.replace(sign, "" if joined or is_beside_space else " ")
    return _LAST_FULL_STOPS.sub("", stripped, count=_MOST_FULL_STOPS)
