"""The web application: routes, errors as JSON, metrics, and a page of documentation that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

import ehm
from ehm.deploy.serve.http.edge import OPEN, Edge, refuse_if_crowded
from ehm.deploy.serve.http.exchange import RETRY
from ehm.deploy.serve.inference.service import Service
from ehm.deploy.serve.routes import dense, images, open_inference, page
from ehm.deploy.serve.routes.neighbours import Index
from ehm.errors import RequestError
from ehm.storage.names import escape_undecodable

__all__ = ["create_app"]


_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
"""The schema of an answer that refuses a request."""


class _DescribedApp(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Return what FastAPI finds, and the API key, which `Edge` asks for, if this server has one."""
        if self.openapi_schema is None and super().openapi() and self.state.service.guarded:
            schema: dict[str, Any] = self.openapi_schema or {}
            schema["components"]["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            schema["security"] = [{"bearer": []}, {"key": []}]
            for path in OPEN & schema["paths"].keys():
                schema["paths"][path]["get"]["security"] = []
        return super().openapi()


def _name_operation(route: APIRoute) -> str:
    """Return the operation's id in the description, from which programs make the names of functions."""
    # a route with a version is a second one of the same function
    return f"{route.name}_of_version" if "{version}" in route.path else route.name


def create_app(service: Service, index: Index | None = None) -> FastAPI:
    """Return the application around a service, which is its ``state.service``.

    Images to search are its ``state.index``.
    """
    error = {"description": "refused, with the reason", "content": {"application/json": {"schema": _ERROR}}}
    app = _DescribedApp(
        title="ehm serve",
        version=ehm.__version__,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # an empty answer, to an address that the client's Host header made
        generate_unique_id_function=_name_operation,
        responses={"4XX": error, "5XX": error},
    )
    app.state.service = service
    app.state.index = index
    for routes in (page, images, dense, open_inference):
        app.include_router(routes.router, dependencies=[Depends(refuse_if_crowded)])

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Return the description for people."""
        return HTMLResponse(_render_page(app))

    app.add_exception_handler(RequestError, _answer_refusal)
    app.add_exception_handler(HTTPException, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_middleware(Edge, service=service)
    return app


def _answer_error(request: Request, status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    reason = escape_undecodable(reason)  # JSON of a client may name a lone surrogate, which UTF-8 cannot hold
    request.state.record.error = reason
    return JSONResponse({"error": reason}, status, headers)


async def _answer_refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestError):
        headers = RETRY if error.status in (429, 503) else None
        return _answer_error(request, error.status, str(error), headers)
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    headers = dict(error.headers or {})
    reason = str(error.detail)
    if error.status_code == 404:
        reason = f"there is nothing at {path}"
        if path[1:].endswith("/"):
            reason += "; try it without the / at its end"
    elif error.status_code == 405:
        allowed = headers.get("allow", headers.get("Allow", "another method"))
        reason = f"{path} takes {allowed}, not {request.method[:20]}"
    return _answer_error(request, error.status_code, reason, headers)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Sequence[object]] = error.errors()[0]
    return _answer_error(request, 422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")


def _render_page(app: FastAPI) -> str:
    """Return the content of /openapi.json as a page for people."""
    schema = app.openapi()
    rows = []
    for path, methods in schema["paths"].items():
        for name, route in methods.items():
            text = escape(route.get("description", ""))
            rows.append(f"<dt><code>{name.upper()} {escape(path)}</code></dt><dd><pre>{text}</pre></dd>")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(schema['info']['title'])}</title>"
        "<style>body{font:16px sans-serif;max-width:50em;margin:2em auto}pre{white-space:pre-wrap;font:inherit}</style>"
        f"<h1>{escape(schema['info']['title'])} {escape(schema['info']['version'])}</h1>"
        "<p>The whole description is <a href=openapi.json>openapi.json</a>; <a href=metrics>metrics</a>.</p>"
        f"<dl>{''.join(rows)}</dl></html>"
    )
