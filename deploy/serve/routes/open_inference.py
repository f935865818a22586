"""Routes of the Open Inference Protocol v2, and Triton's extension that lists, loads and unloads models."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

import ehm
from ehm.deploy.serve.inference.served_model import ServedModel
from ehm.deploy.serve.inference.service import Served, Service
from ehm.deploy.serve.routes.json_request import InferenceRequest
from ehm.deploy.serve.routes.protocol import InferRequest, decode_request, describe_model, encode_response
from ehm.deploy.serve.routes.schemas import (
    INFERENCE,
    IndexEntry,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
)
from ehm.errors import EhmError, RequestError

__all__ = ["router"]

_HEADER = "Inference-Header-Content-Length"
_EXTENSIONS = ["binary_tensor_data", "classification", "model_repository"]


def _inline_definitions(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with its definitions in place of references: OpenAPI looks for them elsewhere."""
    # as text, since definitions refer to each other at any depth
    text = json.dumps(schema)
    for name, definition in schema["$defs"].items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(definition))
    inlined: dict[str, Any] = json.loads(text)
    del inlined["$defs"]
    return inlined


_INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _inline_definitions(InferenceRequest.model_json_schema())},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_VERSION: dict[str, Any] = {
    "parameters": [{"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}]
}
_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ModelReady, "description": "not now"}}
_MOST_OPTIONS = 2**16
"""The most bytes of a JSON object that is no inference request."""
router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])


async def _find_model(service: Served, request: Request, model: str) -> ServedModel:
    # the version is taken from the path, as FastAPI would make a query parameter of it for a path that has none
    return service.find_model(request, model, request.path_params.get("version"))


Asked = Annotated[ServedModel, Depends(_find_model)]


@router.get("", response_model=ServerMetadata)
async def server_metadata() -> dict[str, Any]:
    """Return the name, the version and the extensions of the server."""
    return {"name": "ehm", "version": ehm.__version__, "extensions": _EXTENSIONS}


@router.get("/health/live", response_model=Live)
async def server_live() -> dict[str, bool]:
    """Tell whether the process answers."""
    return {"live": True}


@router.get("/health/ready", response_model=Ready, responses={503: {"model": Ready, "description": "not now"}})
async def server_ready(service: Served) -> JSONResponse:
    """Tell whether every model can be asked; no longer once the server is told to stop."""
    return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)


@router.get("/models/{model}", response_model=ModelMetadata)
@router.get("/models/{model}/versions/{version}", response_model=ModelMetadata, openapi_extra=_VERSION)
async def model_metadata(asked: Asked) -> dict[str, Any]:
    """Return the inputs and outputs of a model."""
    return describe_model(asked.manifest, asked.name, asked.version)


@router.get("/models/{model}/ready", response_model=ModelReady, responses=_NOT_READY)
@router.get(
    "/models/{model}/versions/{version}/ready",
    response_model=ModelReady,
    responses=_NOT_READY,
    openapi_extra=_VERSION,
)
async def model_ready(service: Served, asked: Asked) -> JSONResponse:
    """Tell whether requests for a model should be sent here; no longer once the server is told to stop."""
    ready = not service.stopping
    return JSONResponse({"name": asked.name, "ready": ready}, 200 if ready else 503)


@router.get("/models/{model}/config", include_in_schema=False)
@router.get("/models/{model}/versions/{version}/config", include_in_schema=False)
async def absent_config(asked: Asked) -> None:
    """Refuse what tritonclient's get_model_config asks for."""
    raise RequestError(404, f"Triton's model configuration is absent; /v2/models/{asked.name} has inputs and outputs")


@router.get("/models/{model}/stats", include_in_schema=False)
@router.get("/models/{model}/versions/{version}/stats", include_in_schema=False)
async def absent_statistics(asked: Asked) -> None:
    """Refuse what tritonclient's get_inference_statistics asks for."""
    raise RequestError(404, "Triton's statistics are absent; /metrics has such figures")


@router.post("/models/{model}/infer", openapi_extra=_INFER, responses=INFERENCE, response_class=Response)
@router.post(
    "/models/{model}/versions/{version}/infer",
    openapi_extra=_INFER | _VERSION,
    responses=INFERENCE,
    response_class=Response,
)
async def model_infer(service: Served, request: Request, served: Asked) -> Response:
    """Run a model on tensors, in JSON or in binary."""
    refusal = served.predictor.handler.tensor_refusal
    if refusal is not None:
        raise RequestError(400, f"the model {served.name} {refusal}")
    # 19 digits are more bytes than any body has
    length = request.headers.get(_HEADER)
    if length is not None and not (length.isascii() and length.isdecimal() and len(length) < 19):
        raise RequestError(400, f"{_HEADER}: expected the number of bytes of the JSON")
    body = await service.read_body(request)
    head_length = None if length is None else int(length)
    asked: InferRequest = await service.offload(request, decode_request, body, head_length, served.manifest)
    # before the queue: memory for attention grows with the square of the pixels
    served.check_tensor(asked.images.shape)
    names = [output.name for output in asked.outputs]
    outputs = await service.run_model(request, served, asked.images, names, asked.timeout)

    def encode() -> tuple[bytes, dict[str, str]]:
        body, head = encode_response(asked, outputs, served.name, served.version, served.manifest.labels)
        headers = {"content-type": "application/json"}
        if head is not None:
            headers = {"content-type": "application/octet-stream", _HEADER: str(head)}
        return body, headers

    body, headers = await service.offload(request, encode)
    return Response(body, headers=headers)


@router.post("/repository/index", response_model=list[IndexEntry])
async def repository_index(service: Served, request: Request) -> list[dict[str, str]]:
    """List every model, whether it can be asked, and why not."""
    found = service.models.list_index()
    only_ready = (await _read_options(service, request)).get("ready") is True
    return [entry for entry in found if entry["state"] == "READY" or not only_ready]


@router.post("/repository/models/{model}/load", response_class=Response)
async def model_load(service: Served, request: Request, model: str) -> Response:
    """Load a model, or load it again from its folder."""
    _require_control(service, request)
    parameters = (await _read_options(service, request)).get("parameters") or {}
    if parameters:
        raise RequestError(400, "parameters: a model is loaded as it lies in its folder, expected none")
    try:
        await service.models.load(model)
    except RequestError:
        raise
    except EhmError as error:
        raise RequestError(400, f"{model} cannot be loaded: {error}") from None
    return Response()


@router.post("/repository/models/{model}/unload", response_class=Response)
async def model_unload(service: Served, request: Request, model: str) -> Response:
    """Stop serving a model; the requests that it has accepted are answered."""
    _require_control(service, request)
    service.models.unload(model)
    return Response()


def _require_control(service: Service, request: Request) -> None:
    if not service.settings.model_control:
        raise RequestError(
            403, "models are loaded and unloaded by the server alone; --model-control lets clients do so"
        )
    # any page that a browser on this machine shows can post here, but it knows no key
    if "origin" in request.headers and not service.guarded:
        raise RequestError(403, "a web page (Origin) loads and unloads models only with an API key")


async def _read_options(service: Service, request: Request) -> dict[str, Any]:
    """Return the JSON object of a request, empty if there is none."""
    body = await service.read_body(request)
    if len(body) > _MOST_OPTIONS:
        raise RequestError(413, f"the body has {len(body)} bytes, more than {_MOST_OPTIONS}")
    try:
        options = await service.offload(request, json.loads, body or b"{}")
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise RequestError(400, "the body: expected a JSON object, or nothing")
    return options
