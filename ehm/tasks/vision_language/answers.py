"""The answer in what a language model writes: its first sentence, a yes or no, a number; and VQA's normal form.

The rules are those of GVT's evaluation as the paper describes them (V-B), by whole words: GVT's published code looks
for "no" anywhere, and finds it in "now", and a "one" in "none". Case is ignored.
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
"""Digits of a number that are read: more than anybody counts, and Python refuses thousands of them."""
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")

# What follows is the normal form of the official program of VQAv2 (GT-Vision-Lab/VQA), with its peculiarities.
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_LAST_FULL_STOPS = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32
"""Full stops that are taken out: the program passes a flag of this value where the number is expected."""
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
    """Return the contractions by what they are without one of their apostrophes."""
    found = {}
    for right in _CONTRACTIONS.split():
        for place, sign in enumerate(right):
            if sign == "'":
                found[right[:place] + right[place + 1 :]] = right
    # the one entry of the program that takes an apostrophe away
    found["somebody'd"] = "somebodyd"
    return found


_MISSPELLINGS = _list_misspellings()


def shorten_answer(text: str, rule: Rule) -> str:
    """Return the answer in ``text`` by the ``rule`` of its question: its first sentence, or a word or number in it.

    "" stands for no answer; of a number there always is one.
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


@lru_cache(maxsize=1 << 16)  # the same short answers come again and again
def normalise_answer(text: str) -> str:
    """Return ``text`` as the official program of VQAv2 compares it: no punctuation, articles or number words."""
    words = []
    for word in strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split():
        word = _DIGITS.get(word, word)
        if word not in _ARTICLES:
            words.append(_MISSPELLINGS.get(word, word))
    return " ".join(words)


@lru_cache(maxsize=1 << 16)
def strip_punctuation(text: str) -> str:
    """Return ``text`` without signs, as the official program of VQAv2 takes them out.

    A sign vanishes if it stands beside a space somewhere, or if there is a comma between digits; or else it becomes a
    space. Full stops stay before digits only.
    """
    joined = _COMMA_BETWEEN_DIGITS.search(text) is not None
    stripped = text
    for sign in _SIGNS:
        is_beside_space = f"{sign} " in text or f" {sign}" in text
        stripped = stripped.replace(sign, "" if joined or is_beside_space else " ")
    return _LAST_FULL_STOPS.sub("", stripped, count=_MOST_FULL_STOPS)
