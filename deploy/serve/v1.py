"""Routes for people with an image file: classes or features of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from ehm.deploy.serve.service import Served, Service
from ehm.errors import RequestError

__all__ = ["IMAGE", "Model", "router"]

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"type": "object", "required": ["image"], "properties": {"image": _BINARY["schema"]}}
IMAGE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/png": _BINARY,
            "image/jpeg": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {"schema": _FORM},
        },
    }
}

Model = Annotated[str | None, Query(description="its name; needed where several are served")]
router = APIRouter(prefix="/v1", tags=["Images"])


@router.post("/classify", openapi_extra=IMAGE)
async def classify(
    service: Served,
    request: Request,
    model: Model = None,
    top: Annotated[int, Query(ge=1, description="how many classes")] = 5,
) -> dict[str, Any]:
    """The likeliest classes of an image, with probabilities.

    The image file is the whole body (`curl --data-binary @photo.jpg`) or the field `image` of a form
    (`curl -F image=@photo.jpg`).
    """
    answer, outputs, served = await _run(service, request, model, "logits")
    classes = served.predictor.describe("", outputs, top).classes
    return answer | {"classes": [{"label": label, "probability": share} for label, share in classes]}


@router.post("/embed", openapi_extra=IMAGE)
async def embed(service: Served, request: Request, model: Model = None) -> dict[str, Any]:
    """The features of an image, sent as for classify."""
    answer, outputs, _ = await _run(service, request, model, "features")
    return answer | {"features": outputs["features"].tolist()}


async def _run(service: Service, request: Request, name: str | None, output: str) -> tuple[dict[str, Any], Any, Any]:
    """What every answer begins with, one row of an output, and the model that gave it."""
    model = service.model(request, name)
    if model.manifest.output(output) is None:
        raise RequestError(400, f"the model {model.name} gives no {output}")
    row, file = await service.prepare(request, model)
    outputs = await service.answer(request, model, row, [output])
    answer = {"model": model.name, "version": model.version} | ({"image": file} if file else {})
    return answer, {output: outputs[output][0]}, model
