"""The question "did you mean ...?" for a name that is not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["suggest", "suggest_path"]

_LEAST_LIKENESS = 0.6
"""Share of letters that two names have in common, from 0 to 1, below which nothing is suggested."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean NAME?)`` for the name of ``known`` that is most like ``word``; empty if none is alike."""
    return _ask(_find_nearest(word, {name: name for name in known}))


def suggest_path(word: str, known: Iterable[str], separator: str = ".") -> str:
    """Return what `suggest` does for names of several parts, such as ``optim.epochs``, by their last parts.

    Names that have all other parts in common with ``word`` come first.
    """
    parent, _, leaf = word.rpartition(separator)
    siblings: dict[str, str] = {}
    others: dict[str, str] = {}
    for name in known:
        its_parent, _, its_leaf = name.rpartition(separator)
        if its_parent == parent:
            siblings[its_leaf] = name
        else:
            others.setdefault(its_leaf, name)
    return _ask(_find_nearest(leaf, siblings) or _find_nearest(leaf, others))


def _find_nearest(word: str, names: dict[str, str]) -> str | None:
    """Return the one of ``names``, by what they are compared by, that is most like ``word``; None if none is alike."""
    by_lower_case = {key.lower(): name for key, name in names.items()}
    found = get_close_matches(word.lower(), by_lower_case, 1, _LEAST_LIKENESS)
    return by_lower_case[found[0]] if found else None


def _ask(name: str | None) -> str:
    return "" if name is None else f" (did you mean {name}?)"
