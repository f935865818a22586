"""Flags of the commands that write files for the shell: completion and manual pages."""

from __future__ import annotations

from ehm.commands.flags import Parser

__all__ = ["add_completion_flags", "add_manual_flags"]


def add_completion_flags(parser: Parser) -> None:
    """Add the flags of ``ehm completion``."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish", "tcsh"], help="Write for this shell.")


def add_manual_flags(parser: Parser) -> None:
    """Add the flags of ``ehm man``."""
    parser.add_argument("out", metavar="DIR", help="Folder of manuals, whose folder man1 the pages are written into.")
