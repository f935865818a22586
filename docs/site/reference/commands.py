"""A page for each command: usage, arguments and flags in their groups, and what stands at the end of its help."""

from __future__ import annotations

import argparse
import os
import re
from itertools import groupby
from unittest import mock

from ehm.cli import build_parser
from ehm.commands import COMMANDS
from ehm.config.commands import COMMANDS as CONFIGURED
from reference.configuration import name_page
from reference.markdown import escape_cell, link_guides, write_table

__all__ = ["FOLDER", "list_parsers", "write_command_pages", "write_help"]

FOLDER = "reference/commands"
_USAGE_COLUMNS = "100"
_TO_DOCS = "../../"
_STATUS = re.compile(r"\d+\s")
"""The beginning of a line that says what an exit status means."""


def write_command_pages() -> dict[str, str]:
    """Return the Markdown of each page by its place: that of all commands first."""
    parsers = list_parsers()
    pages = {f"{FOLDER}/README.md": _write_overview(parsers)}
    for name, parser in parsers.items():
        pages[f"{FOLDER}/{name}.md"] = _write_command(name, parser)
    return pages


def list_parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    parser = build_parser()
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def _write_overview(parsers: dict[str, argparse.ArgumentParser]) -> str:
    rows = [(f"[`ehm {name}`]({name}.md)", escape_cell(COMMANDS[name].help)) for name in parsers]
    return (
        "# Commands\n\nThe same as `ehm COMMAND --help` prints.\n\n"
        + write_table(("command", "what it does"), rows)
        + "".join(_write_group(group) for group in build_parser(())._action_groups)
    )


def _write_command(name: str, parser: argparse.ArgumentParser) -> str:
    # argparse breaks the usage at the width of the terminal
    with mock.patch.dict(os.environ, COLUMNS=_USAGE_COLUMNS, NO_COLOR="1"):
        usage = parser.format_usage().removeprefix("usage: ").strip()
    parts = [f"# ehm {name}\n\n{parser.description or ''}\n\n```text\n{usage}\n```\n\n"]
    parts.append(_link_keys(name))
    parts += [_write_group(group) for group in parser._action_groups]
    return "".join(parts) + _write_epilog(parser.epilog or "")


def _link_keys(name: str) -> str:
    """Return a line with links to the keys of a command's configurations; an empty text if it has none."""
    owners = [owner for owner in CONFIGURED.values() if owner.split()[1] == name]
    links = [f"[`{owner}`](../configuration/{name_page(owner)})" for owner in owners]
    return f"Keys of its configuration: {', '.join(links)}.\n\n" if links else ""


def _write_group(group: argparse._ArgumentGroup) -> str:
    """Return a heading and a table for the flags of a group; an empty text if all are hidden."""
    actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
    actions = [action for action in actions if not isinstance(action, argparse._SubParsersAction)]
    if not actions:
        return ""
    rows = [(_write_names(action), write_help(action, _TO_DOCS)) for action in actions]
    title = (group.title or "options").capitalize()
    kind = "flag" if any(action.option_strings for action in actions) else "argument"
    description = f"{group.description}\n\n" if group.description else ""
    return f"## {title}\n\n{description}{write_table((kind, 'meaning'), rows)}"


def _write_names(action: argparse.Action) -> str:
    """Return the names of a flag with its value, long ones first, each with an anchor; or an argument."""
    value = _describe_value(action)
    if not action.option_strings:
        return f"`{value}`"
    names = sorted(action.option_strings, key=lambda name: not name.startswith("--"))
    return "<br>".join(f"`{' '.join([name, value]).strip()}`{{#{name} .flag}}" for name in names)


def _describe_value(action: argparse.Action) -> str:
    """Return the value of a flag or an argument as usage shows it, empty if the flag takes none."""
    if action.nargs == 0:
        return ""
    name = action.metavar or action.dest.upper()
    if action.metavar is None and action.choices is not None:
        name = "|".join(str(choice) for choice in action.choices)
    elif action.metavar is None and not action.option_strings:
        name = action.dest
    name = " ".join(name) if isinstance(name, tuple) else name
    return {"+": f"{name} ...", "*": f"[{name} ...]", "?": f"[{name}]", argparse.REMAINDER: f"{name} ..."}.get(
        str(action.nargs), name
    )


def write_help(action: argparse.Action, to_docs: str) -> str:
    """Return the help of a flag as the Markdown of a cell; ``to_docs`` leads to the folder of the guides."""
    return link_guides(escape_cell((action.help or "").replace("%%", "%")), to_docs)


def _write_epilog(epilog: str) -> str:
    """Return the end of a help text: a line with a colon is a heading, and indented lines are examples or statuses."""
    parts = []
    for is_indented, lines in groupby(epilog.splitlines(), key=lambda line: line.startswith(" ")):
        block = [line.strip() for line in lines]
        parts.append(_write_block(block) if is_indented else _write_lines(block))
    return "".join(parts)


def _write_block(lines: list[str]) -> str:
    if all(_STATUS.match(line) for line in lines):
        return write_table(("status", "meaning"), [line.split(maxsplit=1) for line in lines])
    text = "\n".join(lines)
    return f"```sh\n{text}\n```\n\n"


def _write_lines(lines: list[str]) -> str:
    """Return lines of text; one such as "examples:" is a heading."""
    headed = [f"## {line[:-1].capitalize()}\n" if line.endswith(":") else line for line in lines]
    return "\n".join(headed) + "\n"
