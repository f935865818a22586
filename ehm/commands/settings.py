"""Settings of the configuration on the command line without ``--set``: ``ehm train optim.epochs=10``.

A word is a setting if the part before its first ``=`` is a key, or a section, of the command's configuration, and if it
is not the value of a flag. If a command takes files or runs as arguments, a word that names an existing file or folder
is not a setting; nor is ``./seed=1``. Words after ``--`` are not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ehm.suggestions import suggest_path

if TYPE_CHECKING:
    from ehm.commands.parser import CommandParser

__all__ = ["describe_unknown_setting", "gather_settings"]


def gather_settings(words: Sequence[str], parser: CommandParser) -> list[str]:
    """Move all settings in the ``words`` of a command line to the front, as ``--set=KEY=VALUE`` in the same order.

    argparse would not accept them between the files that a command takes.
    """
    end = words.index("--") if "--" in words else len(words)
    takes_files = any(not action.option_strings and action.choices is None for action in parser._actions)
    settings: list[str] = []
    others: list[str] = []
    position = 0
    while position < end:
        taken = words[position : position + _count_words(words[position:end], parser)]
        flag = parser.find_flag(taken[0])
        value = taken[1] if len(taken) > 1 else taken[0].partition("=")[2]
        if flag is not None and flag.dest == "overrides" and "=" in value:
            settings.append(value)
        elif _is_setting(taken[0], parser.prog) and not (takes_files and Path(taken[0]).exists()):
            settings.append(taken[0])
        else:
            others += taken
        position += len(taken)
    return [*(f"--set={setting}" for setting in settings), *others, *words[end:]]


def _count_words(words: Sequence[str], parser: CommandParser) -> int:
    """Return the number of words that belong to the first one: a flag and its values, or a single other word."""
    flag = parser.find_flag(words[0])
    if flag is None or "=" in words[0] or flag.nargs == 0:
        return 1
    values = 0
    for word in words[1:]:
        if word.startswith("-"):
            break
        values += 1
    return 1 + (values if flag.nargs in ("+", "*") else min(values, 1))


def describe_unknown_setting(word: str, prog: str) -> str:
    """Return the message for a setting whose key the command does not have, with the most similar key."""
    key = word.partition("=")[0]
    return f"{word}: no such key{suggest_path(key, _list_keys(prog))}"


def _is_setting(word: str, prog: str) -> bool:
    key, sign, _ = word.partition("=")
    return bool(sign) and key in _list_keys(prog)


def _list_keys(prog: str) -> frozenset[str]:
    # imported here: the configurations are pydantic models, which few command lines need to be parsed
    from ehm.config.commands import list_key_names

    return list_key_names(prog.split()[1])
