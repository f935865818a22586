"""The command line: it parses the arguments, runs a command, and turns its errors into one sentence and a status.

``ehm COMMAND --help`` explains each command; they stand in :mod:`ehm.commands`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ehm.commands import COMMANDS, HEADINGS, Command
from ehm.commands.examples import OVERVIEW_EPILOG, write_epilog
from ehm.commands.flags import add_output_flags
from ehm.commands.parser import CommandParser
from ehm.commands.results import print_json, print_place
from ehm.console import console, direct_messages
from ehm.errors import ConfigError, EhmError, WriteError
from ehm.installation import describe_version
from ehm.processors import prepare_threads

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 is success, 1 an error, 2 a wrong configuration or argument, 130 an interruption, and 141 a reader of the output
    that has gone away (``| head``), the status that shells give.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Flags are built for the command that is asked for alone: those of serve take a fifth of a second to load.
    parser = build_parser(arguments[:1])
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    options = vars(parser.parse_args(arguments))
    prepare_threads()
    command = options.pop("command")
    debug = options.pop("debug", False)
    try:
        _refuse_settings(command, options.pop("refused", []))
        result = _run_command(COMMANDS[command], options)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except EhmError as error:
        if debug:
            raise
        if isinstance(error, WriteError):
            _discard_output()
        print(f"ehm {command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:
        _discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:  # from a file whose reader or writer does not name it
        if debug:
            raise
        _discard_output()
        file = error.filename or "standard output, or a file without a name (--debug shows where)"
        print(f"ehm {command}: {file}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ehm {command}: interrupted", file=sys.stderr)
        return 130


def _run_command(command: Command, options: dict[str, Any]) -> Any:
    """Run a command, print its result as ``--json`` and ``--quiet`` ask for, and return it."""
    is_quiet = options.pop("quiet", False)
    is_json = options.get("json", False)
    if command.has_json:
        options.pop("json", None)
    with direct_messages(hide=is_quiet, to_standard_error=is_json):
        result = command.run(options)
    # the first of several processes prints, and a status is no result
    if console.quiet or isinstance(result, int):
        return result
    if is_json and command.has_json:
        print_json(result)
    elif is_quiet and not is_json:
        print_place(result)
    return result


def build_parser(commands: Sequence[str] = tuple(COMMANDS)) -> CommandParser:
    """Build the parser of all commands, with the flags of ``commands`` only."""
    parser = CommandParser(
        prog="ehm",
        usage="ehm COMMAND [options]",
        description="Pretrain vision encoders with Evolved Hierarchical Masking, and use them.",
        epilog=OVERVIEW_EPILOG,
    )
    parser.add_argument(
        "--version",
        action=_ShowVersion,
        nargs=0,
        default=argparse.SUPPRESS,
        help="Show the version and, if it is known, the commit, and exit.",
    )
    parser.add_help_flag(parser)
    subparsers = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="COMMAND",
        title="commands",
        description="ehm COMMAND --help explains a command and gives examples.",
        prog="ehm",
    )
    subparsers.headings = HEADINGS  # type: ignore[attr-defined]
    for name, command in COMMANDS.items():
        # SUPPRESS omits flags that are not given, so that the function's defaults apply.
        subparser = subparsers.add_parser(
            name,
            help=command.help,
            description=command.help,
            epilog=write_epilog(name),
            argument_default=argparse.SUPPRESS,
        )
        if name in commands:
            command.add_flags(subparser)
            subparser.write_usage()
        add_output_flags(subparser, has_quiet=command.has_quiet, has_json=command.has_json)
    return parser


class _ShowVersion(argparse.Action):
    """Print the version and exit. argparse's own action would ask git for the commit at every command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"ehm {describe_version()}")
        parser.exit()


def _refuse_settings(command: str, refused: Sequence[str]) -> None:
    """Refuse ``--config`` and ``--set`` if they would change nothing, rather than ignore them."""
    if refused and command == "launch":
        raise ConfigError("--config and --set belong to the command that is launched: write it and its flags behind --")
    if refused:
        origin = "what --checkpoint names" if command == "inspect" else "the bundle"
        raise ConfigError(f"takes neither --config nor --set: its settings are its other flags and {origin}")


def _discard_output() -> None:
    """Drop the output that could not be written: flushing it at exit would fail once more, with a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, WriteError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
