"""Flags that several commands share."""

from __future__ import annotations

import argparse

__all__ = [
    "CHECKPOINT_HELP",
    "Parser",
    "add_config_flags",
    "add_device_flag",
    "add_out_flag",
    "add_refused_flags",
    "add_resume_flag",
    "add_training_flags",
]

Parser = argparse.ArgumentParser

CHECKPOINT_HELP = "run folder, checkpoint folder, weights file or timm:NAME"
_TRAINING_DEVICES = "auto, cpu, cuda, npu, mindspore[:cpu|:ascend], or another device that ehm doctor lists"


def add_training_flags(parser: Parser, out: str) -> None:
    """Add the flags of every command that trains; ``out`` is the default of ``--out``."""
    add_config_flags(parser)
    add_device_flag(parser)
    add_out_flag(parser, f"write the results into this folder (default: {out})")


def add_config_flags(parser: Parser) -> None:
    """Add ``--config`` and ``--set``."""
    parser.add_argument(
        "--config", metavar="FILE", help="configuration to use: a YAML file, or a name that ehm configs lists"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        dest="overrides",
        help="override one key of the configuration, for example optim.epochs=20; can be repeated",
    )


def add_refused_flags(parser: Parser) -> None:
    """Accept ``--config`` and ``--set`` for a command without settings, to explain instead of "unrecognized"."""
    for flag in ("--config", "--set"):
        parser.add_argument(flag, action="append", dest="refused", help=argparse.SUPPRESS)


def add_device_flag(parser: Parser) -> None:
    """Add ``--device`` of the training frameworks."""
    parser.add_argument("--device", help=f"device to compute on: {_TRAINING_DEVICES} (default: auto)")


def add_out_flag(parser: Parser, text: str) -> None:
    """Add ``--out``, whose help is ``text``."""
    parser.add_argument("--out", metavar="DIR", help=text)


def add_resume_flag(parser: Parser) -> None:
    """Add ``--resume``."""
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder of --out")
