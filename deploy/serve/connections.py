"""Connections that ask nothing: uvicorn ends one that idles behind an answer, and no other."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["timed"]


def timed(seconds: float) -> type[H11Protocol]:
    """uvicorn's connection, which is closed where the head of a request is not there ``seconds`` after it began.

    The first one begins with the connection, a later one with its first byte.
    """

    class Timed(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def _watch(self) -> None:
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            elif not answering and self._timer is None:
                self._timer = self.loop.call_later(seconds, self.transport.close)

    return Timed
