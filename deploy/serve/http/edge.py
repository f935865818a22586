"""The outermost layer: every request gets an identity, passes the gate, and is answered, counted and logged once."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ehm.deploy.serve.http.exchange import Exchange
from ehm.deploy.serve.inference.memory import Record
from ehm.deploy.serve.inference.service import Service, find_service
from ehm.deploy.serve.routes import page
from ehm.errors import RequestError

__all__ = ["OPEN", "Edge", "refuse_if_crowded"]

_LOG = logging.getLogger("ehm.serve")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
OPEN = frozenset({"/", "/docs", "/metrics", "/openapi.json", "/v2/health/live", "/v2/health/ready", *page.STATIC})
"""Paths that need no API key and are always answered: while the server stops, and if too much is under way."""


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service = self._service
        # from the head on: a slow body is part of the request
        deadline = asyncio.get_running_loop().time() + service.settings.timeout
        headers = Headers(scope=scope)
        method = scope["method"]
        # an id of a client goes into logs and headers, so it may not hold anything
        request_id = headers.get("x-request-id", "")
        if not _ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        record = Record(request_id, deadline)
        scope.setdefault("state", {})["record"] = record
        if method == "HEAD" and scope["path"] in OPEN:
            scope = {**scope, "method": "GET"}  # the server, whose scope still says HEAD, leaves out the body
        exchange = Exchange(service, record, scope, receive, send)
        try:
            refusal = self._find_refusal(scope["path"], headers)
            if refusal is None:
                await self._app(scope, exchange.receive, exchange.send)
            else:
                await exchange.refuse(*refusal)
        except asyncio.CancelledError:
            if not (service.closed and exchange.status == 0):
                raise
            await exchange.refuse(503, "the server stops, and its time for answers is over")
        except Exception:
            _LOG.exception("request %s failed", record.id)
            if exchange.status == 0:
                reason = f"the server failed on this request; its log has the reason under {record.id}"
                await exchange.refuse(500, reason)
        finally:
            exchange.count_out()
            service.memory.release(record)
            seconds = exchange.seconds
            status = exchange.status
            route = getattr(scope.get("route"), "path", "")
            service.metrics.count_request(record.model, route, status, seconds, record.asked)
            fields = {"id": record.id, "method": method, "path": scope["path"], "status": status}
            fields |= {"model": record.model, "ms": round(seconds * 1000, 2), "batch": record.batch}
            if record.error:
                fields["error"] = record.error
            level = logging.INFO
            if scope["path"] in OPEN:  # probes come every few seconds, and would bury the rest
                level = logging.DEBUG
            elif status >= 500:
                level = logging.WARNING
            _LOG.log(level, "request", extra={"fields": fields})
        # it is counted and logged: to read on what nobody wants is no part of it
        await exchange.finish()

    def _find_refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        """Return status and reason if a request may not pass, else None."""
        if path in OPEN:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token if scheme.lower() == "bearer" else headers.get("x-api-key")
        if not self._service.allows_key(key):
            return 401, "expected the server's API key, as Authorization: Bearer KEY or X-API-Key: KEY"
        if self._service.closed:
            return 503, "the server stops"
        return None


async def refuse_if_crowded(request: Request) -> None:
    """Refuse (429) a request if too many are under way.

    It is a dependency of every route, since the route tells the model, under whose name a refusal is counted.
    """
    service = await find_service(request)
    if not service.crowded or request.scope["path"] in OPEN:
        return
    name: str = request.path_params.get("model") or request.query_params.get("model") or ""
    if not name and request.method == "POST" and len(service.models) == 1:
        name = next(iter(service.models))
    if name in service.models:
        service.get_record(request).model = name
    raise RequestError(429, f"{service.under_way - 1} requests are under way; try again in a second")
