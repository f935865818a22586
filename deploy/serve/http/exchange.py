"""The messages of one request: its answer leaves in pieces, and the rest of a body that was refused is read on."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from ehm.deploy.serve.inference.memory import Record
from ehm.deploy.serve.inference.service import Service
from ehm.deploy.serve.settings import PIECE
from ehm.errors import RequestError

__all__ = ["RETRY", "Exchange"]

RETRY = {"retry-after": "1"}
"""Headers of an answer with 429 or 503."""
_LINGER_SECONDS = 5.0
_LINGER_BYTES = 64 * 2**20
"""The time and the bytes for which a body is read on behind an early answer.

A connection that is closed while data arrive is reset by the kernel, and the client, or the proxy in front, loses the
answer with it. nginx and Apache linger for the same reason (``lingering_close``).
"""


class Exchange:
    """The messages of one request, between the application and the client; it is under way until its answer begins.

    ``status`` is that of the answer, 0 until it begins; ``seconds`` is how long it took to begin. :meth:`count_out` and
    :meth:`finish` have to be called at the end.
    """

    def __init__(self, service: Service, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self.status = 0
        self.seconds = 0.0
        self._entered = asyncio.get_running_loop().time()
        self._service = service
        self._record = record
        self._receive = receive
        self._send = send
        # a request without these two headers has no body (RFC 9112, 6.3)
        self._body_read = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self._counted_out = False
        self._start: Message | None = None
        self._refused = False
        self._unfinished = False
        service.under_way += 1

    def count_out(self) -> None:
        """Count the request as under way no longer: clients that read slowly keep nobody out."""
        if not self._counted_out:
            self._counted_out = True
            self._service.under_way -= 1
            self.seconds = asyncio.get_running_loop().time() - self._entered

    async def receive(self) -> Message:
        """Return the next message of the client."""
        message = await self._receive()
        if not message.get("more_body", False):  # the end of the body, or of the connection
            self._body_read = True
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the application's answer; one that memory has no room for is refused instead."""
        if self._refused:
            return
        if message["type"] == "http.response.start":
            self._start = message  # it waits for the body, which may be too large
            return
        if self._start is not None:
            try:
                self._service.memory.hold_answer(self._record, len(message.get("body", b"")))
            except RequestError as error:
                await self.refuse(error.status, str(error))
                return
            await self._begin_answer(self._start)
            self._start = None
        await self._send_body(message.get("body", b""), last=not message.get("more_body", False))

    async def refuse(self, status: int, reason: str) -> None:
        """Answer with an error; whatever else the application sends is dropped."""
        self._refused = True
        self._record.error = reason
        body = json.dumps({"error": reason}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        if status in (429, 503):
            headers |= RETRY
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        start: Message = {"type": "http.response.start", "status": status, "headers": []}
        MutableHeaders(scope=start).update(headers)
        await self._begin_answer(start)
        await self._send_body(body, last=True)

    async def finish(self) -> None:
        """Read on what is left of the body, for a bounded time and size, and end the answer."""
        if not self._unfinished:
            return
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._discard_body(), _LINGER_SECONDS)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin_answer(self, start: Message) -> None:
        """Send the status and the headers."""
        self.count_out()
        self.status = start["status"]
        headers = MutableHeaders(scope=start)
        headers["x-request-id"] = self._record.id
        if self._service.stopping:  # the client should look for another server
            headers["connection"] = "close"
        await self._send(start)

    async def _send_body(self, body: bytes, last: bool) -> None:
        """Send a part of the body in pieces; the ``last`` one is left open if the request's body is not read yet."""
        ends = last and self._body_read
        left = memoryview(body)
        while len(left) > PIECE:
            # uvicorn waits in here until the client has taken the piece before
            await self._send({"type": "http.response.body", "body": left[:PIECE], "more_body": True})
            left = left[PIECE:]
        await self._send({"type": "http.response.body", "body": left, "more_body": not ends})
        self._unfinished = last and not ends

    async def _discard_body(self) -> None:
        """Read what is left of the request's body, within bounds."""
        discarded = 0
        while not self._body_read and discarded < _LINGER_BYTES:
            discarded += len((await self.receive()).get("body", b""))
