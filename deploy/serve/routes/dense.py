"""Routes for an image file that answer with places in the image: a mask, or objects."""

from __future__ import annotations

import base64
import io
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel

from ehm.deploy.predict.detection import DetectionHandler
from ehm.deploy.predict.segmentation import WINDOW_BATCH, SegmentationHandler, make_label_image
from ehm.deploy.serve.inference.served_model import ServedModel
from ehm.deploy.serve.inference.service import Served, Service, Upload
from ehm.deploy.serve.routes.images import BINARY, IMAGE, Answer, Model

__all__ = ["router"]


class Share(BaseModel):
    """A class, and its share of the image's pixels."""

    label: str
    share: float


class Segmentation(Answer):
    """The classes that occur, the largest first, and the mask: a PNG in base64 whose values are ``labels``' numbers."""

    labels: list[str]
    classes: list[Share]
    mask: str


class Runs(BaseModel):
    """A mask of an image (height, width) as COCO's uncompressed run-length code: down the columns, zeros first."""

    size: list[int]
    counts: list[int]


class Object(BaseModel):
    """An object: its class, a score in [0, 1], its box (left, top, right, bottom) in pixels, and its mask."""

    label: str
    score: float
    box: list[float]
    mask: Runs | None = None


class Detection(Answer):
    """The objects of an image, the likeliest first."""

    objects: list[Object]


router = APIRouter(prefix="/v1", tags=["Images"])
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": BINARY}}}


@router.post("/segment", openapi_extra=IMAGE, response_model=Segmentation, responses=_PNG)
async def segment(
    service: Served,
    request: Request,
    model: Model = None,
    png: Annotated[bool, Query(description="answer with the mask alone, as a file")] = False,
) -> Any:
    """Return the class of each pixel of an image, sent as for classify; `?png=true` answers with a label image."""
    served = service.find_model(request, model)
    handler = served.require_handler(SegmentationHandler)
    upload = await service.read_image(request, served)
    labels = await _compute_mask(service, request, served, handler, upload)

    # compressing takes a while: in a thread
    def pack() -> tuple[bytes, list[Share]]:
        file = io.BytesIO()
        make_label_image(labels).save(file, format="PNG")
        shares = []
        for label, share in handler.measure_shares(labels):
            shares.append(Share(label=label, share=share))
        return file.getvalue(), shares

    data, classes = await service.offload(request, pack)
    if png:
        return Response(data, media_type="image/png")
    return Segmentation(
        model=served.name,
        version=served.version,
        image=upload.name,
        labels=list(served.manifest.labels),
        classes=classes,
        mask=base64.b64encode(data).decode(),
    )


@router.post("/detect", openapi_extra=IMAGE, response_model_exclude_none=True)
async def detect(
    service: Served,
    request: Request,
    model: Model = None,
    masks: Annotated[bool, Query(description="with masks, if the model gives any")] = True,
    score: Annotated[float, Query(ge=0, le=1, description="of an object, at least; the bundle's if that is more")] = 0,
) -> Detection:
    """Return the objects in an image, sent as for classify."""
    served = service.find_model(request, model)
    handler = served.require_handler(DetectionHandler)
    upload = await service.read_image(request, served)
    objects = await _find_objects(service, request, served, handler, upload, max(handler.fit.threshold, score), masks)
    return Detection(model=served.name, version=served.version, image=upload.name, objects=objects)


async def _compute_mask(
    service: Service, request: Request, served: ServedModel, handler: SegmentationHandler, upload: Upload
) -> NDArray[np.uint8]:
    """Return the class of each pixel: windows go through the model like the images of requests, a few at a time."""
    mosaic = await service.offload(request, handler.cut_windows, upload.image)
    # scores in float32 for every class and pixel are kept until the last window
    service.hold_bytes(request, 4 * len(served.manifest.labels) * mosaic.pixel_count)
    # in between, batches of other requests have their turn
    for start in range(0, len(mosaic), WINDOW_BATCH):
        outputs = await service.run_model(request, served, mosaic.inputs(start, WINDOW_BATCH), ["scores"])
        await service.offload(request, mosaic.add_scores, start, outputs["scores"])
    return await service.offload(request, mosaic.make_labels, (upload.image.height, upload.image.width))


async def _find_objects(
    service: Service,
    request: Request,
    served: ServedModel,
    handler: DetectionHandler,
    upload: Upload,
    threshold: float,
    masks: bool,
) -> list[Object]:
    """Return the objects of a score above ``threshold``, with or without masks."""
    placed, inputs = await service.offload(request, handler.place, upload.image)
    names = [name for name in served.manifest.output_names if masks or name != "masks"]
    rows = await service.run_model(request, served, inputs, names)
    outputs = {name: values[0] for name, values in rows.items()}
    if "masks" in outputs:
        # pasted, each mask is as large as the image
        count = int((outputs["scores"] > threshold).sum())
        service.hold_bytes(request, count * upload.image.width * upload.image.height)

    def describe() -> list[Object]:
        found = handler.find_objects(outputs, placed, threshold)
        return [Object.model_validate(item.as_dict()) for item in found]

    return await service.offload(request, describe)
