"""The pages of Python: the functions of ``ehm``, what they return and raise, and ``ehm.masking``."""

from __future__ import annotations

import argparse
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import ehm
from ehm.commands import COMMANDS
from ehm.deploy.serve.settings import Settings
from reference.commands import list_parsers, write_help
from reference.markdown import write_table

__all__ = ["write_python_pages"]

_FUNCTIONS_PAGE = "reference/python.md"
_MASKING_PAGE = "reference/masking.md"
_TO_DOCS = "../"
_COMMAND_OF_PREDICT = "predict"
"""The command that calls one of two functions, by what it is given."""
_INTRODUCTION = """\
# Python

`import ehm` imports no framework; the functions below do on first use. Their parameters are the flags of the commands,
which the tables explain, and `overrides` is a list of texts such as `"optim.epochs=20"`.

"""
_ERRORS = """\
## Errors

::: ehm.errors
    options:
      show_root_heading: false
      show_root_toc_entry: false
      heading_level: 3
"""
_MASKING = """\
# ehm.masking

::: ehm.masking
    options:
      show_root_heading: false
      show_root_toc_entry: false
      heading_level: 2
"""


def write_python_pages() -> dict[str, str]:
    """Return the Markdown of the pages by their places; mkdocstrings puts signatures and docstrings in."""
    functions = {name: getattr(ehm, name) for name in ehm._MODULES}
    parts = [_INTRODUCTION]
    for name, function in functions.items():
        parts.append(_write_object(f"{function.__module__}.{function.__qualname__}", f"ehm.{name}"))
        parts.append(_write_parameters(name, function))
    parts.append("## Results\n\n")
    for result in dict.fromkeys(result for function in functions.values() for result in _find_results(function)):
        parts.append(_write_object(f"{result.__module__}.{result.__qualname__}", result.__qualname__, level=3))
    parts.append(_ERRORS)
    return {_FUNCTIONS_PAGE: "".join(parts), _MASKING_PAGE: _MASKING}


def _write_object(path: str, heading: str, level: int = 2) -> str:
    return f"::: {path}\n    options: {{heading: {heading}, toc_label: {heading}, heading_level: {level}}}\n\n"


def _write_parameters(name: str, function: Callable[..., Any]) -> str:
    """Return a table of the parameters that are flags of the function's command."""
    command = _find_command(name, function)
    if command is None:
        return ""
    flags = {action.dest: action for action in list_parsers()[command]._actions}
    parameters = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    if len(names) < len(parameters):  # the others are passed on by name, which serve alone does
        names += Settings.model_fields
    described = [(each, flags[each]) for each in names if each in flags and _is_shown(flags[each])]
    rows = [(f"`{each}`", _name_flag(flag), write_help(flag, _TO_DOCS)) for each, flag in described]
    return write_table(("parameter", f"of `ehm {command}`", "meaning"), rows)


def _find_command(name: str, function: Callable[..., Any]) -> str | None:
    """Return the command that runs a function; None if it has none."""
    place = f"{ehm._MODULES[name]}:{function.__name__}"
    for command, entry in COMMANDS.items():
        if entry.function == place:
            return command
    return _COMMAND_OF_PREDICT if name.startswith(_COMMAND_OF_PREDICT) else None


def _find_results(function: Callable[..., Any]) -> Iterator[type]:
    """Yield the classes of ehm in what a function returns."""
    returned = typing.get_type_hints(function).get("return")
    for kind in (typing.get_origin(returned) or returned, *typing.get_args(returned)):
        if isinstance(kind, type) and kind.__module__.startswith("ehm."):
            yield kind


def _is_shown(action: argparse.Action) -> bool:
    return action.help not in (None, argparse.SUPPRESS)


def _name_flag(action: argparse.Action) -> str:
    return f"`{max(action.option_strings, key=len)}`" if action.option_strings else "argument"
