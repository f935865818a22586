"""A layout: the names that a family of published files has, and the way from them to timm's names.

A file is recognised by its names alone. Rules rename it, and steps change what has another shape or another number of
arrays than in timm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ehm.models.published.facts import PublishedFacts
from ehm.storage.arrays import Arrays

__all__ = ["Layout", "Rules", "Step", "has_name"]

Rules = tuple[tuple[str, str], ...]
"""Regular expressions and what replaces their matches; all are applied to a name, one after the other."""
Step = Callable[[Arrays], Arrays]
"""A function that changes arrays under timm's names to the form that timm has."""


@dataclass(frozen=True)
class Layout:
    """The names of one family of files.

    ``signs`` are regular expressions, each of which has to match the beginning of some name below the encoder's prefix,
    and none of ``absent`` may; ``signs_beside`` have to match names outside of it. ``fits`` is a condition on the
    arrays, for two families that have the same names. ``left`` are regular expressions of names below the prefix that
    are no part of an encoder, and ``beside`` renames those outside of it that are a head or a decoder of ours.
    """

    family: str
    signs: tuple[str, ...]
    absent: tuple[str, ...] = ()
    signs_beside: tuple[str, ...] = ()
    fits: Callable[[Arrays], bool] | None = None
    rules: Rules = ()
    left: tuple[str, ...] = ()
    beside: Rules = ()
    steps: tuple[Step, ...] = ()
    facts: PublishedFacts = field(default_factory=PublishedFacts)

    def recognise(self, arrays: Arrays, beside: Iterable[str]) -> bool:
        """Tell whether ``arrays``, those below the encoder's prefix, and the names ``beside`` it are of this layout."""
        if not all(has_name(arrays, sign) for sign in self.signs):
            return False
        if any(has_name(arrays, sign) for sign in self.absent):
            return False
        if not all(has_name(beside, sign) for sign in self.signs_beside):
            return False
        return self.fits is None or self.fits(arrays)

    def rename(self, arrays: Arrays) -> tuple[Arrays, list[str]]:
        """Return the arrays of the encoder under their new names, and the names that are left aside."""
        renamed = {}
        aside = []
        for name, array in arrays.items():
            if _matches(name, self.left):
                aside.append(name)
            else:
                renamed[_apply_rules(name, self.rules)] = array
        return renamed, aside

    def rename_beside(self, arrays: Arrays) -> tuple[Arrays, list[str]]:
        """Return the heads and decoders of ``arrays`` outside of the encoder, and the names that are left aside."""
        renamed = {}
        aside = []
        for name, array in arrays.items():
            if _matches(name, dict(self.beside)):
                renamed[_apply_rules(name, self.beside)] = array
            else:
                aside.append(name)
        return renamed, aside


def has_name(names: Iterable[str], pattern: str) -> bool:
    """Tell whether ``pattern`` matches the beginning of one of ``names``."""
    return any(re.match(pattern, name) for name in names)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)


def _apply_rules(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
