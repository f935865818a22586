"""The JSON of an inference request as typed objects; large arrays of numbers are left for `json_numbers`."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ehm.deploy.serve.routes.json_numbers import cut_numbers, load_strict_json
from ehm.errors import RequestError

__all__ = ["InferenceRequest", "Input", "Output", "Parameters", "parse_request"]

_Size = Annotated[int, Field(strict=True, ge=0)]
Parameters = dict[str, Any] | None
"""Clients in several languages write null for what they do not set, here and inside."""
_LARGE = 2**16
"""Bytes of JSON whose numbers are read in small steps; anything shorter takes a few milliseconds at most."""
_MOST_BESIDE = 2**20
"""The most characters of JSON beside the numbers: they are read in one go, while nobody else is answered."""


class Input(BaseModel):
    """An input, ``$request_input`` of the protocol."""

    name: str
    shape: list[_Size]
    datatype: str
    parameters: Parameters = None
    data: list[Any] | None = None


class Output(BaseModel):
    """An output that is asked for, ``$request_output`` of the protocol."""

    name: str
    parameters: Parameters = None


class InferenceRequest(BaseModel):
    """A request, ``$inference_request`` of the protocol."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    parameters: Parameters = None
    inputs: list[Input]
    outputs: list[Output] | None = None


def parse_request(head: bytes) -> tuple[InferenceRequest, str]:
    """Read the JSON of a request; a large array of numbers is returned as text, with an empty one in its place.

    Raises RequestError: 400 for JSON that is no request, 413 for too much of it beside the numbers.
    """
    if not head:
        raise RequestError(400, "the body is empty: expected an inference request in JSON")
    numbers = ""
    try:
        # JSON may be in UTF-16 or UTF-32 as well
        text = head.decode(json.detect_encoding(head), "surrogatepass")  # as json.loads does
        if len(text) > _LARGE:
            text, numbers = cut_numbers(text)
        if len(text) > _MOST_BESIDE:
            raise RequestError(
                413,
                f"the JSON has {len(text)} characters beside one array of numbers, more than {_MOST_BESIDE}; send "
                "tensors in binary (binary_data_size)",
            )
        return InferenceRequest.model_validate(load_strict_json(text)), numbers
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = f"{key}: {first['msg']}" if key else first["msg"]
        raise RequestError(400, reason) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None
