"""The outermost layer: every request gets an identity, passes the gate, and is answered, counted and logged once."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ehm.deploy.serve import explore
from ehm.deploy.serve.service import Record, Service

__all__ = ["OPEN", "Edge"]

_LOG = logging.getLogger("ehm.serve")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
OPEN = frozenset({"/", "/docs", "/metrics", "/openapi.json", "/v2/health/live", "/v2/health/ready", *explore.STATIC})
"""Paths that need no API key, and that are answered while the server stops."""


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._within = 0
        # of every model that may wait, and as many again that are read and decoded
        self._most = 2 * service.settings.queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service = self._service
        loop = asyncio.get_running_loop()
        began = loop.time()
        headers, method = Headers(scope=scope), scope["method"]
        given = headers.get("x-request-id", "")
        record = Record(given if _ID.fullmatch(given) else uuid.uuid4().hex, began + service.settings.timeout)
        scope.setdefault("state", {})["record"] = record
        status = 0
        if scope["method"] == "HEAD" and scope["path"] in OPEN:
            scope = {**scope, "method": "GET"}  # the server, whose scope still says HEAD, leaves out the body

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = record.id
                if service.stopping:
                    answer["connection"] = "close"
            await send(message)

        async def refuse(code: int, reason: str) -> None:
            record.error = reason
            await _refuse(sending, code, reason)

        self._within += 1
        try:
            refusal = self._refusal(scope["path"], headers)
            if refusal is None:
                await self._app(scope, receive, sending)
            else:
                await refuse(*refusal)
        except asyncio.CancelledError:
            if not (service.stopping and status == 0):
                raise
            await refuse(503, "the server stops, and its time for answers is over")
        except Exception:
            _LOG.exception("request %s failed", record.id)
            if status == 0:
                await refuse(500, f"the server failed on this request; its log has the reason under {record.id}")
        finally:
            self._within -= 1
            service.held -= record.held
            seconds = loop.time() - began
            route = getattr(scope.get("route"), "path", "")
            service.metrics.request(record.model, route, status, seconds)
            fields = {"id": record.id, "method": method, "path": scope["path"], "status": status}
            fields |= {"model": record.model, "ms": round(seconds * 1000, 2), "batch": record.batch}
            fields |= {"error": record.error} if record.error else {}
            level = logging.WARNING if status >= 500 else logging.INFO
            level = logging.DEBUG if scope["path"] in OPEN else level
            _LOG.log(level, "request", extra={"fields": fields})

    def _refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        """Status and reason, where a request may not pass."""
        if path in OPEN:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token if scheme.lower() == "bearer" else headers.get("x-api-key")
        if not self._service.allows(key):
            return 401, "expected the server's API key, as Authorization: Bearer KEY or X-API-Key: KEY"
        if self._service.stopping:
            return 503, "the server stops"
        if self._within > self._most * max(1, len(self._service.models)):
            return 429, f"{self._within - 1} requests are under way; try again in a second"
        return None


RETRY = {"retry-after": "1"}
"""Headers of an answer with 429 or 503."""


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= RETRY if status in (429, 503) else {}
    headers |= {"www-authenticate": "Bearer"} if status == 401 else {}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
