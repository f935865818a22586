"""Routes for an image file that answer with its classes or features."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from pydantic import BaseModel

from ehm.deploy.predict.features import FeaturesHandler
from ehm.deploy.serve.inference.served_model import ServedModel
from ehm.deploy.serve.inference.service import Served, Service
from ehm.errors import RequestError

__all__ = ["BINARY", "IMAGE", "Answer", "Model", "compute_row", "router"]

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"type": "object", "required": ["image"], "properties": {"image": BINARY["schema"]}}
IMAGE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/png": BINARY,
            "image/jpeg": BINARY,
            "application/octet-stream": BINARY,
            "multipart/form-data": {"schema": _FORM},
        },
    }
}


class Class(BaseModel):
    """A class, and how likely it is."""

    label: str
    probability: float


class Answer(BaseModel):
    """The origin of an answer: the model, its version, and the file's name if a form said it."""

    model: str
    version: str
    image: str | None = None


class Classes(Answer):
    """The likeliest classes, the likeliest first; of a model of several labels an image, also those that are present.

    A label is present if its probability reaches the label's threshold in the bundle.
    """

    classes: list[Class]
    present: list[str] | None = None


class Features(Answer):
    """The features of the whole image."""

    features: list[float]


Model = Annotated[str | None, Query(description="its name; needed if several are served")]
router = APIRouter(prefix="/v1", tags=["Images"])


@router.post("/classify", openapi_extra=IMAGE, response_model_exclude_none=True)
async def classify(
    service: Served,
    request: Request,
    model: Model = None,
    top: Annotated[int, Query(ge=1, description="how many classes")] = 5,
) -> Classes:
    """Return the likeliest classes of an image, with probabilities.

    The image file is the whole body (`curl --data-binary @photo.jpg`) or the field `image` of a form
    (`curl -F image=@photo.jpg`).
    """
    served = service.find_model(request, model)
    row, file = await compute_row(service, request, served, "logits")
    handler = served.require_handler(FeaturesHandler)  # no other gives logits of an image
    found = handler.describe("", {"logits": row}, top)
    classes = [Class(label=label, probability=share) for label, share in found.classes]
    present = None if found.present is None else list(found.present)
    return Classes(model=served.name, version=served.version, image=file, classes=classes, present=present)


@router.post("/embed", openapi_extra=IMAGE, response_model_exclude_none=True)
async def embed(service: Served, request: Request, model: Model = None) -> Features:
    """Return the features of an image, sent as for classify."""
    served = service.find_model(request, model)
    row, file = await compute_row(service, request, served, "features")
    return Features(model=served.name, version=served.version, image=file, features=row.tolist())


async def compute_row(
    service: Service, request: Request, model: ServedModel, output: str
) -> tuple[NDArray[np.float32], str | None]:
    """Return a model's output for the image of a request, one row, and the file's name."""
    # asked before the body is read, which may be large
    if model.manifest.output(output) is None:
        raise RequestError(400, f"the model {model.name} gives no {output}")
    outputs, file = await service.answer_image(request, model, [output])
    row = outputs[output][0]
    # JSON has no infinities, which come for example from an overflow in float16
    if not np.isfinite(row).all():
        raise RequestError(500, f"the model {model.name} gave {output} that are not finite")
    return row, file
