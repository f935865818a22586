"""The processes that train one model together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["ALONE", "OneProcess", "Processes"]


class Processes(Protocol):
    """The processes that train one model together, each on its own device and its own part of every batch."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0; number 0 writes the files and prints."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    @property
    def local_size(self) -> int:
        """Number of processes that share this machine's processors."""
        ...

    def gather_values(self, value: Any) -> list[Any]:
        """Return ``value`` of every process in the order of ranks; all call this, and wait for each other."""
        ...


@dataclass(frozen=True)
class OneProcess:
    """A process that trains alone."""

    rank: int = 0
    size: int = 1
    local_size: int = 1

    def gather_values(self, value: Any) -> list[Any]:
        """See :meth:`Processes.gather_values`."""
        return [value]


ALONE = OneProcess()
