"""The memory that requests hold: their bodies, their images, and their answers until these are read."""

from __future__ import annotations

from dataclasses import dataclass

from ehm.deploy.serve.settings import PIECE
from ehm.errors import RequestError

__all__ = ["Memory", "Record"]


@dataclass
class Record:
    """The facts known about one request.

    ``deadline`` is on the event loop's clock, ``asked`` is true once its model was asked, ``batch`` is the size of the
    batch that it ran in, ``held`` the bytes that it holds, and ``error`` the sentence that refuses it.
    """

    id: str
    deadline: float
    model: str = ""
    asked: bool = False
    batch: int = 0
    held: int = 0
    error: str = ""


class Memory:
    """The memory that all requests hold together: ``held`` bytes of at most ``most``."""

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most

    def hold(self, record: Record, count: int) -> None:
        """Account for ``count`` bytes until `release`; RequestError (413, 429) if there are too many."""
        self._hold_bytes(record, count, "the request")

    def hold_answer(self, record: Record, count: int) -> None:
        """Account for the bytes of an answer until it is sent, in place of what its request held; errors of `hold`."""
        self.release(record)
        # no more than a piece waits in a connection, and an error has to be told in any case
        if count > PIECE:
            self._hold_bytes(record, count, "the answer")

    def release(self, record: Record) -> None:
        """Give back what a request held."""
        self.held -= record.held
        record.held = 0

    def _hold_bytes(self, record: Record, count: int, what: str) -> None:
        if record.held + count > self._most:
            raise RequestError(413, f"{what} takes more than {self._most} bytes of memory")
        if self.held + count > self._most:
            raise RequestError(
                429, f"all requests together take more than {self._most} bytes of memory; try again in a second"
            )
        record.held += count
        self.held += count
