"""Every error that ehm raises on purpose, in one tree.

    EhmError
    ├── ConfigError       a configuration file, a ``--set`` or an argument is wrong
    ├── DataError         an image source is empty, missing or unreadable
    │   └── BrokenImage   one file cannot be decoded
    ├── CheckpointError   a checkpoint is missing, incomplete, altered or does not fit
    ├── BackendError      a device or a framework is missing or cannot do what is asked
    ├── TrainingError     a run cannot go on
    │   └── NotFiniteError    a loss or a gradient is not finite
    ├── ExportError       a bundle cannot be written, verified or loaded
    ├── WriteError        a file cannot be written: a full disk, a folder without permission
    └── RequestError      a server refuses a request, with an HTTP status

Each message is one sentence that names the key, file or argument and says what would be right. The command line prints
it without a traceback and exits with status 1 (2 for a ConfigError, as argument parsers do).
The functions of :mod:`ehm.masking` raise plain ValueError for bad arguments, as NumPy's do.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BackendError",
    "BrokenImage",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EhmError",
    "ExportError",
    "NotFiniteError",
    "RequestError",
    "TrainingError",
    "WriteError",
    "take_first_line",
]


class EhmError(Exception):
    """Base of all errors that are meant for the user."""


class ConfigError(EhmError):
    """A configuration file, a ``--set`` or an argument is wrong."""


class DataError(EhmError):
    """An image source is empty, missing or unreadable."""


class BrokenImage(DataError):  # noqa: N818 - it names what is wrong
    """One image file cannot be decoded."""


class CheckpointError(EhmError):
    """A checkpoint is missing, incomplete, altered or does not fit."""


class BackendError(EhmError):
    """A device or a framework is missing or cannot do what is asked."""


class TrainingError(EhmError):
    """A run cannot go on."""


class NotFiniteError(TrainingError):
    """The loss or the gradient of a step is not finite.

    ``step`` is its number, counted from 1; ``problem`` says what is not finite, and ``remedy`` what may help.
    """

    def __init__(self, step: int, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.step = step
        self.problem = problem
        self.remedy = remedy


class ExportError(EhmError):
    """A bundle cannot be written, verified or loaded."""


class WriteError(EhmError):
    """A file cannot be written; ``reason`` is the operating system's, ``remedy`` what has to be done about it.

    ``outcome`` says what survived, and ``next_step`` how to go on afterwards.
    """

    def __init__(
        self,
        path: Path | str,
        reason: str,
        remedy: str,
        outcome: str = "nothing half-written was left there",
        next_step: str = "run the command again",
    ) -> None:
        super().__init__(f"{path}: cannot be written: {reason}; {outcome}; {remedy}, and {next_step}")
        self.path = path
        self.reason = reason
        self.remedy = remedy


class RequestError(EhmError):
    """A server refuses a request; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def take_first_line(error: BaseException) -> str:
    """Return the first line of what another library's error says, or its kind if it says nothing.

    Many go on with a stack of calls or with advice that does not suit ehm.
    """
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0]
    return type(error).__name__
