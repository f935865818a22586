"""Limits of connections: their number, the size and time of a request's head, the time in which its answer is read."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ehm.deploy.serve.http.logs import OncePerSecond
from ehm.deploy.serve.inference.metrics import Metrics

__all__ = ["drop_unread", "limit_connections"]

_LOG = logging.getLogger("ehm.serve")
_MOST_HEAD_BYTES = 64 * 2**10
"""Bytes of a head, or of what frames a body (sizes of chunks, trailers), that may arrive and not be complete yet.

httptools, unlike h11, has no limit of its own, and keeps all of it; it parses a request in a fraction of h11's time.
"""


def limit_connections(
    metrics: Metrics, *, head_timeout: float, send_timeout: float, most: int
) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP protocol with four limits of which uvicorn has none.

    A head of more than ``_MOST_HEAD_BYTES`` is answered with 400. A connection is closed if the head of a request is
    not complete ``head_timeout`` seconds after it began (the first one begins with the connection, a later one with its
    first byte), and dropped if the client leaves what was written to it untouched for ``send_timeout`` seconds. At most
    ``most`` connections are open: another one takes the place of the one that has been without a request for the
    longest time, or is refused if all have one.
    """
    idle: dict[HttpToolsProtocol, None] = {}  # connections without a request, the longest idle first
    crowded = OncePerSecond(_LOG)

    class LimitedProtocol(HttpToolsProtocol):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._head_timer = _Timer()
            self._send_timer = _Timer()
            self._unparsed_bytes = 0  # received since a head or a piece of a body was complete

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            # asyncio calls pause_writing above this limit: 0 makes it tell of every byte that the client has not taken
            transport.set_write_buffer_limits(high=0)
            metrics.connections.set(len(self.connections))
            if len(self.connections) > most:
                victim = next(iter(idle), self)  # the longest idle one, or this new one if all have a request
                crowded.warning("%d connections are open, as many as may be: one is closed for each new one", most)
                metrics.dropped.labels("limit").inc()
                _close_at_once(victim.transport)
                idle.pop(victim, None)
                if victim is self:
                    return
            self._note_idle()
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            metrics.connections.set(len(self.connections))
            idle.pop(self, None)
            self._head_timer.cancel()
            self._send_timer.cancel()

        def data_received(self, data: bytes) -> None:
            self._unparsed_bytes += len(data)
            super().data_received(data)
            if self._unparsed_bytes > _MOST_HEAD_BYTES and not self.transport.is_closing():
                metrics.dropped.labels("head").inc()
                self.send_400_response(f"The head of the request has more than {_MOST_HEAD_BYTES} bytes.")
            self._note_idle()
            self._watch_head()

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self._unparsed_bytes = 0

        def on_body(self, body: bytes) -> None:
            super().on_body(body)
            self._unparsed_bytes = 0

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._unparsed_bytes = 0

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._note_idle()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._send_timer.start(send_timeout, self._drop_slow_reader)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._send_timer.cancel()

        def _drop_slow_reader(self) -> None:
            left = self.transport.get_write_buffer_size()
            _LOG.warning("a client left %d bytes of its answer unread for %g seconds: dropped", left, send_timeout)
            metrics.dropped.labels("unread").inc()
            _close_at_once(self.transport)

        def _note_idle(self) -> None:
            if self._has_request() or self.transport.is_closing():
                idle.pop(self, None)
            else:
                idle.setdefault(self)

        def _watch_head(self) -> None:
            if self._has_request():
                self._head_timer.cancel()
            else:
                self._head_timer.start(head_timeout, self.transport.close)

        def _has_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

    return LimitedProtocol


def drop_unread(connections: Iterable[Any]) -> None:
    """Drop the connections of clients that have not read what was written to them."""
    for connection in list(connections):
        if connection.transport.get_write_buffer_size():
            _close_at_once(connection.transport)


def _close_at_once(transport: asyncio.Transport) -> None:
    """Close a connection and drop what the client has not read, which the kernel would otherwise keep for minutes."""
    if not transport.is_closing() or transport.get_write_buffer_size():
        abort = struct.pack("ii", 1, 0)  # linger, for 0 seconds
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abort)
    transport.abort()


class _Timer:
    """A call in the future, of which at most one is pending."""

    def __init__(self) -> None:
        self._pending: asyncio.TimerHandle | None = None

    def start(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function after that number of seconds, unless a call is pending already."""
        if self._pending is None:
            self._pending = asyncio.get_running_loop().call_later(seconds, function)

    def cancel(self) -> None:
        """Forget the pending call, if there is one."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
