"""Convert shell commands to calls of the functions of ``ehm``, for readers who work in a notebook."""

from __future__ import annotations

import json
import shlex

__all__ = ["convert_to_python"]

_FUNCTIONS = {
    "tokenizer train": "train_tokenizer",
    "language train": "train_language_model",
    "bench export": "bench_export",
    "report": "write_report",
}
"""Commands whose functions have another name."""
_LISTS_FROM = {"compare": 0, "predict": 1, "inspect": 1}
"""Functions whose positional arguments from this number on are one list."""


def convert_to_python(command: str) -> str:
    """Convert ``command``, one or several lines ``ehm ...``, to Python.

    Flags become arguments of the same name, and ``--set`` becomes ``overrides``.
    """
    return "\n".join(_convert_line(line) for line in command.splitlines())


def _convert_line(line: str) -> str:
    words = shlex.split(line)[1:]  # without ehm
    name = words.pop(0)
    if words and f"{name} {words[0]}" in _FUNCTIONS:  # a command of two words
        name = f"{name} {words.pop(0)}"
    positional, overrides, flags = _sort_words(words)
    function = _FUNCTIONS.get(name, name)
    arguments = [_quote(value) for value in positional]
    if function in _LISTS_FROM:
        first = _LISTS_FROM[function]
        arguments[first:] = [f"[{', '.join(arguments[first:])}]"]
    if "config" in flags and not positional:
        arguments.append(_quote(flags.pop("config")))
    if overrides:
        arguments.append(f"overrides=[{', '.join(map(_quote, overrides))}]")
    arguments += [f"{flag}={value if value is True else _quote(value)}" for flag, value in flags.items()]
    return f"ehm.{function}({', '.join(arguments)})"


def _sort_words(words: list[str]) -> tuple[list[str], list[str], dict[str, str | bool]]:
    """Return the positional arguments, the values of ``--set``, and the other flags with their values."""
    positional = []
    overrides = []
    flags: dict[str, str | bool] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            positional.append(word)
        elif word == "--set":
            overrides.append(remaining.pop(0))
        else:
            has_value = bool(remaining) and not remaining[0].startswith("--")
            flags[word.removeprefix("--").replace("-", "_")] = remaining.pop(0) if has_value else True
    return positional, overrides, flags


def _quote(text: object) -> str:
    """Return a text as a Python string in double quotes."""
    return json.dumps(str(text), ensure_ascii=False)
