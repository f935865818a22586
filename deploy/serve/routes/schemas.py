"""The answers of the Open Inference Protocol v2, as ``/openapi.json`` describes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

__all__ = [
    "INFERENCE",
    "IndexEntry",
    "Live",
    "ModelMetadata",
    "ModelReady",
    "Ready",
    "ServerMetadata",
    "TensorMetadata",
]


class ServerMetadata(BaseModel):
    """The answer ``$metadata_server_response`` of the protocol."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """The answer that tells if the process lives."""

    live: bool


class Ready(BaseModel):
    """The answer that tells if every model can be asked."""

    ready: bool


class ModelReady(BaseModel):
    """The answer that tells if a model can be asked."""

    name: str
    ready: bool


class TensorMetadata(BaseModel):
    """An input or output of a model; a dimension of -1 takes any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """The answer ``$metadata_model_response`` of the protocol; dynamic dimensions are -1."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class IndexEntry(BaseModel):
    """A model in the answer ``$repository_index_response``."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"enum": ["FP32", "INT64", "BYTES"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
        "data": {"type": "array", "items": {"type": ["number", "string"]}},
    },
}
INFERENCE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The outputs: in JSON, or JSON with the binary ones behind it.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model_name", "model_version", "outputs"],
                    "properties": {
                        "model_name": {"type": "string"},
                        "model_version": {"type": "string"},
                        "id": {"type": "string"},
                        "outputs": {"type": "array", "items": _TENSOR},
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
"""``$inference_response``; it is written by hand in `protocol.encode`, so no class of pydantic's stands behind it."""
