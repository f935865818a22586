"""Flags that several commands share, and the groups that ``--help`` shows flags in."""

from __future__ import annotations

import argparse

from ehm.commands.parser import CommandParser as Parser

__all__ = [
    "CHECKPOINT_HELP",
    "CONFIGURATION",
    "OUTPUT",
    "RUN",
    "Parser",
    "add_config_flags",
    "add_device_flag",
    "add_json_flag",
    "add_out_flag",
    "add_output_flags",
    "add_refused_flags",
    "add_resume_flag",
    "add_set_flag",
    "add_training_flags",
]

CONFIGURATION = "configuration"
RUN = "device and results"
OUTPUT = "output"
"""Titles of the groups of flags that most commands have."""

CHECKPOINT_HELP = "a run folder, a checkpoint folder, a weights file or timm:NAME"
_TRAINING_DEVICES = "auto, cpu, cuda, npu, mindspore[:cpu|:ascend], or another device that ehm doctor lists"
_SET_HELP = "Override one key of the configuration, for example optim.epochs=20."


def add_training_flags(parser: Parser, out: str) -> None:
    """Add the flags of every command that trains; ``out`` is the default of ``--out``."""
    add_config_flags(parser)
    add_device_flag(parser)
    add_out_flag(parser, f"Write the results into this folder (default: {out}).")


def add_config_flags(parser: Parser) -> None:
    """Add ``--config`` and ``--set``."""
    parser.get_group(CONFIGURATION).add_argument(
        "--config", metavar="FILE", help="Use this configuration: a YAML file, or a name that ehm configs lists."
    )
    add_set_flag(parser, _SET_HELP)


def add_set_flag(parser: Parser, text: str) -> None:
    """Add ``--set``; the sentence ``text`` says what it sets."""
    parser.get_group(CONFIGURATION).add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        dest="overrides",
        help=f"{text} Can be repeated, and KEY=VALUE does the same without the flag; the last value of a key counts.",
    )


def add_refused_flags(parser: Parser) -> None:
    """Accept ``--config`` and ``--set`` for a command without settings, so that an error can explain them."""
    for flag in ("--config", "--set"):
        parser.add_argument(flag, action="append", dest="refused", help=argparse.SUPPRESS)


def add_device_flag(parser: Parser) -> None:
    """Add ``--device`` of the training frameworks."""
    parser.get_group(RUN).add_argument("--device", help=f"Compute on this device: {_TRAINING_DEVICES} (default: auto).")


def add_out_flag(parser: Parser, text: str) -> None:
    """Add ``--out``, whose help is ``text``."""
    parser.get_group(RUN).add_argument("--out", metavar="DIR", help=text)


def add_resume_flag(parser: Parser) -> None:
    """Add ``--resume``."""
    parser.get_group(RUN).add_argument(
        "--resume", action="store_true", help="Continue the run in the folder of --out from its newest checkpoint."
    )


def add_json_flag(parser: Parser, text: str) -> None:
    """Add ``--json`` to a command with a JSON document of its own, which the help ``text`` describes."""
    parser.get_group(OUTPUT).add_argument("--json", action="store_true", help=text)


def add_output_flags(parser: Parser, *, has_quiet: bool, has_json: bool) -> None:
    """Add the flags that most commands have, after those of their own."""
    group = parser.get_group(OUTPUT)
    if has_quiet:
        group.add_argument(
            "-q", "--quiet", action="store_true", help="Print only errors and the result, not the progress."
        )
    if has_json:
        group.add_argument(
            "--json",
            action="store_true",
            help="Print the result as one JSON document, and all else to standard error (docs/command_line.md).",
        )
    group.add_argument("--debug", action="store_true", help="Show a traceback if an error occurs.")
    parser.add_help_flag(group)
