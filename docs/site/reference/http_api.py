"""The page of the HTTP API, from the OpenAPI document that ``ehm serve`` gives to its clients."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

from ehm.config.keys import describe_type
from ehm.deploy.serve.http.app import create_app
from ehm.deploy.serve.inference.service import Service
from reference.markdown import escape_cell, write_table

__all__ = ["write_http_pages"]

_PAGE = "reference/http.md"
_DOCUMENT = "reference/openapi.json"
_INTRODUCTION = """\
# HTTP API

[Serving](../serving.md) explains how the server is used. A running server describes itself at `/docs` and
`/openapi.json`; [openapi.json](openapi.json) is the same description. A request that is refused is answered with a
status of 4XX or 5XX and `{"error": "the reason"}`. A server that was started with an API key wants it in each
request, as `Authorization: Bearer KEY` or `X-API-Key: KEY`. `GET /metrics` gives the metrics to Prometheus.

"""

Schema = Mapping[str, Any]


def write_http_pages() -> dict[str, str]:
    """Return the Markdown of the page, and the document itself, by their places."""
    document = _describe_api()
    parts = [_INTRODUCTION]
    tag = ""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if operation["tags"][0] != tag:
                tag = operation["tags"][0]
                parts.append(f"## {tag}\n\n")
            parts.append(_write_operation(method, path, operation))
    parts.append("## Schemas\n\n")
    for name, schema in document["components"]["schemas"].items():
        parts.append(_write_schema(name, schema))
    return {_PAGE: "".join(parts), _DOCUMENT: json.dumps(document, indent=1)}


def _describe_api() -> Schema:
    # Without a service nothing can be asked, but the routes are known.
    service = cast(Service, SimpleNamespace(guarded=True))
    document: Schema = create_app(service).openapi()
    return document


def _write_operation(method: str, path: str, operation: Schema) -> str:
    parts = [f"### {method.upper()} {path}\n\n{operation.get('description', '')}\n\n"]
    rows = [
        (f"`{each['name']}`", each["in"], _write_type(each["schema"]), escape_cell(each.get("description", "")))
        for each in operation.get("parameters", [])
    ]
    parts.append(write_table(("parameter", "in", "type", "meaning"), rows))
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        parts.append(f"Request: {_list_contents(body)}.\n\n")
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            content = answer.get("content", {})
            parts.append(f"Answer {status}: {_list_contents(content) or 'empty'}.\n\n")
    return "".join(parts)


def _list_contents(content: Mapping[str, Schema]) -> str:
    """Return the types of a body in words, each with the media types that hold it."""
    by_type: dict[str, list[str]] = {}
    for kind, described in content.items():
        by_type.setdefault(_write_type(described.get("schema", {})), []).append(f"`{kind}`")
    return "; or ".join(f"{type_} as {' or '.join(kinds)}" for type_, kinds in by_type.items())


def _write_schema(name: str, schema: Schema) -> str:
    description = f"{schema['description']}\n\n" if "description" in schema else ""
    return f"### {name}\n\n{description}" + write_table(("field", "type", "meaning"), _list_fields(schema))


def _list_fields(schema: Schema) -> Iterator[tuple[str, str, str]]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        shown = _write_type(field) if name in required else f"{_write_type(field)}, may be left out"
        yield f"`{name}`", shown, escape_cell(field.get("description", ""))


def _write_type(schema: Schema) -> str:
    """Return the type of a value in words, with a link to each schema that it names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if schema.get("format") == "binary":
        return "bytes"
    if "anyOf" in schema:
        return " or ".join(_write_type(choice) for choice in schema["anyOf"])
    if "items" in schema:
        return f"list of {_write_type(schema['items'])}"
    if isinstance(schema.get("type"), list):
        return " or ".join(_write_type({"type": kind}) for kind in schema["type"])
    if schema.get("properties"):
        fields = [f"`{name}`: {_write_type(field)}" for name, field in schema["properties"].items()]
        return "object with " + "; ".join(fields)
    if schema.get("type") == "object" or ("type" not in schema and not {"const", "enum"} & schema.keys()):
        return "object" if schema else "any value"
    return escape_cell(describe_type(dict(schema)))
