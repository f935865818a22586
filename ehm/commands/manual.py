"""``ehm man``: write manual pages for ``man`` from the parsers that also print ``--help``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

from ehm.cli import build_parser
from ehm.commands.parser import CommandParser
from ehm.console import console
from ehm.storage.writing import write_text

__all__ = ["write_manual"]

_SECTION = "man1"
"""The folder for section 1, user commands, in a folder of manual pages."""


def write_manual(out: str | Path) -> Path:
    """Write ``man1/ehm.1`` and ``man1/ehm-COMMAND.1`` for each command below the folder ``out``, and return it."""
    folder = Path(out)
    parser = build_parser()
    commands = parser.list_commands()
    pages = [f"ehm-{name}" for name in commands]
    write_text(folder / _SECTION / "ehm.1", _write_page("ehm", parser, pages))
    for name, command in commands.items():
        write_text(folder / _SECTION / f"ehm-{name}.1", _write_page(f"ehm-{name}", command, ["ehm"]))
    console.print(f"Manual: {1 + len(pages)} pages in {folder / _SECTION}; man -M {folder} ehm shows the first")
    return folder


def _write_page(name: str, parser: CommandParser, others: list[str]) -> str:
    """Return the page of a command; ``others`` are the pages that it refers to."""
    description = parser.description or ""
    lines = [f'.TH {_escape(name.upper())} 1 {date.today().isoformat()} "ehm {version("ehm")}" "ehm"']
    lines += [".SH NAME", f"{_escape(name)} \\- {_escape(description.removesuffix('.'))}"]
    lines += [".SH SYNOPSIS", ".nf"]
    lines += [_escape(line.strip()) for line in (parser.usage or parser.prog).splitlines()]
    lines += [".fi", ".SH DESCRIPTION", _escape(description)]
    for group in parser._action_groups:
        lines += _write_group(group)
    lines += _write_epilog(parser.epilog or "")
    lines.append(".SH SEE ALSO")
    lines += [f".BR {_escape(other)} (1)," for other in others[:-1]]
    lines.append(f".BR {_escape(others[-1])} (1)")
    return "\n".join(lines) + "\n"


def _write_group(group: argparse._ArgumentGroup) -> Iterator[str]:
    """Yield the lines of a group of flags; none if all of them are hidden."""
    actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
    if not actions:
        return
    yield f".SH {_escape((group.title or 'options').upper())}"
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield from _write_item(f"ehm {choice.dest}", choice.help)
        else:
            yield from _write_item(_describe_flag(action), action.help)


def _write_item(term: str, text: str | None) -> Iterator[str]:
    yield ".TP"
    yield f".B {_escape(term)}"
    yield _escape(text or "")


def _describe_flag(action: argparse.Action) -> str:
    """Return a flag with its value, or the name of an argument."""
    value = str(action.metavar or action.dest.upper())
    if action.choices is not None:
        value = "|".join(map(str, action.choices))
    if not action.option_strings:
        return value
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    return f"{names} [{value}]" if action.nargs == "?" else f"{names} {value}"


def _write_epilog(epilog: str) -> Iterator[str]:
    """Yield the end of a help text: a line that ends with a colon is a heading, and indented lines are not wrapped."""
    is_verbatim = False
    for line in epilog.splitlines():
        if is_verbatim != line.startswith("  "):
            is_verbatim = not is_verbatim
            yield ".nf" if is_verbatim else ".fi"
        if line.endswith(":"):
            yield f".SH {_escape(line.removesuffix(':').upper())}"
        elif line:
            yield _escape(line.strip())
    if is_verbatim:
        yield ".fi"


def _escape(text: str) -> str:
    """Escape ``text``: hyphens are printed so that flags can be copied, and no line is taken for an instruction."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
