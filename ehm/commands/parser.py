"""The parser of a command: flags in groups, examples at the end of the help, and errors of one sentence.

An error quotes the wrong word and the most similar one that is known. ``KEY=VALUE`` is short for ``--set KEY=VALUE`` if
the command has such a key (:mod:`ehm.commands.settings`).
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from ehm.commands.settings import describe_unknown_setting, gather_settings
from ehm.suggestions import suggest

__all__ = ["CommandParser", "Group"]

Group = argparse._ArgumentGroup


class _HelpFormatter(argparse.HelpFormatter):
    """Formats help: wraps paragraphs, but not indented lines, such as examples.

    In the help of ``ehm``, commands have headings: the attribute ``headings`` of the action with all commands maps the
    first command of each group to its heading.
    """

    def _format_action(self, action: argparse.Action) -> str:
        """Return the help of a flag, or of all commands under the headings of their groups."""
        if not isinstance(action, argparse._SubParsersAction):
            return super()._format_action(action)
        headings = getattr(action, "headings", {})
        lines = []
        for command in action._choices_actions:
            if command.dest in headings:
                lines.append(f"\n{headings[command.dest]}:\n")
            lines.append(super()._format_action(command))
        return "".join(lines)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = []
        for line in text.splitlines():
            if line.startswith(" ") or not line:
                lines.append(indent + line)
            else:
                lines += textwrap.wrap(line, width, initial_indent=indent, subsequent_indent=indent)
        return "\n".join(lines)


class CommandParser(argparse.ArgumentParser):
    """A parser of ``ehm`` or of one of its commands."""

    def __init__(self, **options: Any) -> None:
        # without --help, which add_help_flag adds later to the group of output flags
        super().__init__(formatter_class=_HelpFormatter, add_help=False, **options)
        self._positionals.title = "arguments"

    def get_group(self, title: str) -> Group:
        """Return the group of flags with that title, a new one if there is none."""
        for group in self._action_groups:
            if group.title == title:
                return group
        return self.add_argument_group(title)

    def add_help_flag(self, group: argparse._ActionsContainer) -> None:
        """Add ``--help`` to a group."""
        group.add_argument(
            "-h", "--help", action="help", default=argparse.SUPPRESS, help="Show this help message and exit."
        )

    def write_usage(self) -> None:
        """Set the usage to the arguments of the command and ``[options]``, unless it has one of its own."""
        if self.usage is None:
            arguments = [_describe_argument(action) for action in self._actions if not action.option_strings]
            settings = ["[KEY=VALUE ...]"] if self.takes_settings() else []
            self.usage = " ".join([self.prog, *arguments, *settings, "[options]"])

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse ``args``; exit with one sentence and status 2 for a flag or an argument that the command lacks."""
        words = list(args or [])
        self._refuse_unknown_flags(words)
        if self.takes_settings():
            words = gather_settings(words, self)
        options, unexpected = super().parse_known_args(words, namespace)
        if unexpected:
            self._refuse_argument(unexpected[0])
        return options, unexpected

    def find_flag(self, word: str) -> argparse.Action | None:
        """Return the flag that ``word`` names in full or by its beginning; None if the command has no such flag."""
        if not word.startswith("-"):
            return None
        name = word.partition("=")[0]
        if name in self._option_string_actions:
            return self._option_string_actions[name]
        if not name.startswith("--"):
            return None
        candidates = [flag for flag in self._option_string_actions if flag.startswith(name)]
        # any of them: if the beginning is ambiguous, argparse itself reports the error
        return self._option_string_actions[min(candidates)] if candidates else None

    def error(self, message: str, advice: str = "") -> NoReturn:
        """Exit with status 2 and one sentence; ``advice`` says where to read more, by default in the help."""
        # argparse begins messages about an argument with this word
        sentence = message.removeprefix("argument ")
        advice = advice or f"{self.prog} --help explains the command"
        self.exit(2, f"{self.prog}: {sentence}; {advice}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError, which names the most similar choice, if ``value`` is none of the choices."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"{value}: unknown command{suggest(value, choices)}")
        raise argparse.ArgumentError(
            action, f"should be {_join_choices(choices)}, not {value}{suggest(str(value), choices)}"
        )

    def _refuse_unknown_flags(self, words: Sequence[str]) -> None:
        if self.list_commands():
            return
        for word in words:
            if word == "--":
                return
            if word.startswith("--") and " " not in word and self.find_flag(word) is None:
                name = word.partition("=")[0]
                self.error(f"{name}: unknown flag{suggest(name, self._list_flags())}")

    def _refuse_argument(self, word: str) -> None:
        if word.startswith("-"):
            self.error(f"{word}: unknown flag{suggest(word, self._list_flags())}")
        if "=" in word and self.takes_settings():
            advice = f"ehm configs --keys {self.prog.split()[1]} lists the keys"
            self.error(describe_unknown_setting(word, self.prog), advice)
        self.error(f"{word}: unexpected argument")

    def takes_settings(self) -> bool:
        """Return whether the command has a configuration whose keys the command line sets."""
        action = self._option_string_actions.get("--set")
        return action is not None and action.dest == "overrides"

    def list_commands(self) -> dict[str, CommandParser]:
        """Return the parsers of the commands by name, empty for the parser of a command."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def _list_flags(self) -> Iterable[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]


def _describe_argument(action: argparse.Action) -> str:
    """Return an argument in the form of usage messages, for example ``IMAGE [IMAGE ...]``."""
    name = str(action.metavar or action.dest.upper())
    if action.choices is not None and action.metavar is None:
        name = "|".join(map(str, action.choices))
    if action.nargs == "+":
        return f"{name} [{name} ...]"
    if action.nargs == "*":
        return f"[{name} ...]"
    if action.nargs == "?":
        return f"[{name}]"
    return name


def _join_choices(choices: Sequence[str]) -> str:
    """Return choices as a phrase, for example ``a, b or c``."""
    if len(choices) == 1:
        return choices[0]
    return f"{', '.join(choices[:-1])} or {choices[-1]}"
