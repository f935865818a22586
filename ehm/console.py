"""Printing for people: names of files, classes and models appear exactly as users wrote them.

Rich reads ``[red]`` in a text as a style and ``:cat:`` as an emoji, and Python refuses to print a character that the
output's encoding lacks. Any of these can be part of a name, and none may change the name or end a run.

Colours are for terminals; NO_COLOR turns them off everywhere, and FORCE_COLOR on, also in a pipe.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from typing import IO, Any, Literal, cast

from rich.console import Console

from ehm.storage.names import escape_undecodable
from ehm.storage.writing import report_write_errors

__all__ = ["PlainConsole", "console", "direct_messages", "is_notebook", "print_line"]


_FORCED_COLOURS: Literal["standard"] = "standard"
"""The sixteen colours that every program which shows colours understands."""


def is_notebook() -> bool:
    """Return True if this process is the kernel of a notebook, in Jupyter, Colab or an editor."""
    ipython = sys.modules.get("IPython")
    # IPython on a terminal has a shell as well, but no kernel
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class _EscapingStream:
    """A text stream that escapes the characters that its encoding lacks, and is ``stream`` otherwise."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # A stream in memory has no encoding.
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        # names first: Python would write a byte that is no UTF-8 as the surrogate \\udce9, and not as the byte \\xe9
        encodable = escape_undecodable(text).encode(encoding, "backslashreplace").decode(encoding)
        with report_write_errors(self._describe()):
            return self._stream.write(encodable)

    def flush(self) -> None:
        with report_write_errors(self._describe()):
            self._stream.flush()

    def _describe(self) -> str:
        if self._stream is sys.stderr:
            return "standard error"
        return "standard output"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@dataclass
class _Messages:
    """The place that messages go to, for all consoles of the process."""

    are_hidden: bool = False
    use_standard_error: bool = False


_messages = _Messages()


class PlainConsole(Console):
    """A console of rich without markup, emoji and highlighting, which escapes what its stream cannot print.

    A console ``for_messages`` says what is done and how far it is; others print results and errors.
    """

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = True, for_messages: bool = False) -> None:
        self._for_messages = for_messages
        super().__init__(
            color_system=_FORCED_COLOURS if os.environ.get("FORCE_COLOR") else "auto",
            stderr=stderr,
            soft_wrap=soft_wrap,
            markup=False,
            emoji=False,
            highlight=False,
            # in a notebook rich would make an output of its own of every line
            force_jupyter=False,
        )

    @property
    def is_terminal(self) -> bool:
        """True if lines go to a terminal. The stream of a notebook says that it is one, and shows no moving bars."""
        # rich itself would take FORCE_COLOR for a terminal, and draw bars into logs
        return self.file.isatty() and not is_notebook()

    @property
    def file(self) -> IO[str]:
        """The stream that is written to: standard output or standard error as they are now."""
        if self._for_messages and _messages.are_hidden:
            return StringIO()
        if _messages.use_standard_error:
            # while a bar is drawn, rich puts a stream there that prints above the bar, on this console
            return cast(IO[str], _EscapingStream(getattr(sys.stderr, "rich_proxied_file", sys.stderr)))
        return cast(IO[str], _EscapingStream(super().file))

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


console = PlainConsole(for_messages=True)
"""The console on which every command says what it does."""


@contextmanager
def direct_messages(*, hide: bool, to_standard_error: bool) -> Iterator[None]:
    """Hide messages in the block for ``--quiet``, or print what all consoles print to standard error for ``--json``."""
    before = replace(_messages)
    _messages.are_hidden = hide
    _messages.use_standard_error = to_standard_error
    try:
        yield
    finally:
        _messages.are_hidden = before.are_hidden
        _messages.use_standard_error = before.use_standard_error


def print_line(text: str) -> None:
    """Print ``text`` and a line end to standard output at once, unwrapped and without colours, for other programs."""
    stream = _EscapingStream(sys.stdout)
    stream.write(f"{text}\n")
    stream.flush()  # the program that reads the pipe may wait for this line
