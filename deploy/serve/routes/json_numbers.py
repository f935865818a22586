"""Large arrays of numbers in JSON, read and written in small steps.

Python's json, and any other parser, holds the interpreter for a whole document: while one request with 14 MB of JSON is
read, all others wait for most of a second. Here nothing holds it for longer than some thousand numbers take.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cut_numbers", "dump_numbers", "load_strict_json", "parse_numbers"]

_CHARACTERS = 2**14
"""Characters that are read at a time, which takes about half a millisecond."""
_NUMBERS = 2**10
"""Numbers that are written at a time, which takes about half a millisecond."""
_DATA = re.compile(r'"data"\s*:\s*(?=\[)')
_SPACE = re.compile(r"[ \t\n\r]*")


def load_strict_json(text: str) -> Any:
    """Return what ``text`` means as JSON; raises ValueError also for NaN and infinities, which Python's json reads."""
    return json.loads(text, parse_constant=_refuse_constant)


def cut_numbers(text: str) -> tuple[str, str]:
    """Cut the array behind the first key ``data`` out of a JSON text, if it is an array of numbers.

    Returns the text with an empty array in its place, and the array, flat or nested; an empty string if there is none.
    """
    key = _DATA.search(text)
    if key is None:
        return text, ""
    start = key.end()
    # An array of numbers holds neither strings nor objects: it ends before the next quote or brace, with nothing
    # between but the comma before the next key.
    end = len(text)
    for mark in ('"', "}"):
        found = text.find(mark, start)
        if found >= 0:
            end = min(end, found)
    numbers = text[start:end].rstrip(" \t\n\r,")
    if not numbers.endswith("]"):
        return text, ""
    return f"{text[:start]}[]{text[start + len(numbers) :]}", numbers


def parse_numbers(text: str) -> NDArray[Any]:
    """Read an array of numbers in JSON, flat or nested; raises ValueError unless it is one, and rectangular."""
    values, end = _Reader(text).read_array(0)
    if end != len(text):
        raise ValueError(f"unexpected {text[end : end + 20]!r} behind the numbers")
    return values


def dump_numbers(values: NDArray[Any]) -> str:
    """Write numbers as a flat array in JSON."""
    flat = values.ravel()
    pace = _Pace()
    steps = []
    for start in range(0, flat.size, _NUMBERS):
        steps.append(json.dumps(flat[start : start + _NUMBERS].tolist(), separators=(",", ":"))[1:-1])
        pace.let_others_run()
    return f"[{','.join(steps)}]"


class _Reader:
    """A reader of arrays of numbers in a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._pace = _Pace()

    def read_array(self, start: int) -> tuple[NDArray[Any], int]:
        """Read the array that begins at ``start``; returns it and the place behind it."""
        text = self._text
        inner = self._skip_space(start + 1)
        if text[inner : inner + 1] != "[":
            end = text.find("]", inner)
            if end < 0:
                raise ValueError("an array of numbers does not end")
            return self._read_flat(inner, end), end + 1
        rows = []
        while True:
            row, end = self.read_array(inner)
            rows.append(row)
            self._pace.let_others_run()
            end = self._skip_space(end)
            if text[end : end + 1] == "]":
                return np.stack(rows), end + 1
            inner = self._skip_space(end + 1)
            if text[end : end + 1] != "," or text[inner : inner + 1] != "[":
                raise ValueError(f"expected another row of numbers at {text[end : end + 20]!r}")

    def _read_flat(self, start: int, end: int) -> NDArray[Any]:
        """Read numbers with commas between them, which fill ``text[start:end]``."""
        steps: list[NDArray[Any]] = []
        while True:
            cut = -1
            if end - start > _CHARACTERS:
                cut = self._text.find(",", start + _CHARACTERS, end)
            last = cut < 0
            if last:
                cut = end
            values = load_strict_json(f"[{self._text[start:cut]}]")
            # json reads an empty array as well, but there must be a number on either side of a comma
            if not values and (steps or not last):
                raise ValueError("a number is missing")
            numbers = np.asarray(values)
            if numbers.dtype.kind not in "iuf" or numbers.ndim != 1:
                raise ValueError("expected numbers and nothing else")
            steps.append(numbers)
            if last:
                return np.concatenate(steps) if len(steps) > 1 else numbers
            start = cut + 1
            self._pace.let_others_run()

    def _skip_space(self, start: int) -> int:
        match = _SPACE.match(self._text, start)
        assert match is not None  # it matches nothing as well
        return match.end()


class _Pace:
    """A pace that lets other threads run once a millisecond.

    A thread that merely offers the interpreter has it again before another one wakes; one that sleeps has not.
    """

    def __init__(self) -> None:
        self._slept = time.perf_counter()

    def let_others_run(self) -> None:
        """Sleep for a moment if the last time was a millisecond ago."""
        if time.perf_counter() - self._slept > 1e-3:
            time.sleep(5e-5)
            self._slept = time.perf_counter()


def _refuse_constant(constant: str) -> None:
    """Raise ValueError for NaN and infinities, which JSON has not."""
    raise ValueError(f"{constant} is not JSON")
