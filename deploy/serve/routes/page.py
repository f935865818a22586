"""The page at ``/``, which shows what a model sees in an image, and the requests that only the page makes."""

from __future__ import annotations

import base64
import logging
from io import BytesIO
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse
from PIL import Image
from pydantic import BaseModel

from ehm.config.pixel_format import RGB_BYTES
from ehm.data.colour_view import to_photograph
from ehm.data.decoding.channels import read_channels
from ehm.data.decoding.decode import decode_image
from ehm.deploy.serve.inference.images import FORMATS
from ehm.deploy.serve.inference.served_model import ServedModel
from ehm.deploy.serve.inference.service import Served, Service
from ehm.deploy.serve.routes.images import BINARY, IMAGE, Answer, Model, compute_row
from ehm.deploy.serve.routes.neighbours import Index, Neighbour
from ehm.deploy.serve.routes.parts import Level, find_surroundings, take_apart, warm_up
from ehm.errors import BrokenImage, DataError, RequestError

__all__ = ["STATIC", "make_ready", "router"]

_LOG = logging.getLogger("ehm.serve")
_FOLDER = Path(__file__).parents[1] / "static"
STATIC = {
    "/static/page.css": "text/css",
    "/static/page.js": "text/javascript",
    "/static/draw.js": "text/javascript",
    "/static/dense.js": "text/javascript",
    "/static/icon.svg": "image/svg+xml",
}
"""The files of the page, by path, with their types."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_PREVIEW = 1280
"""Pixels along the longer side of the image that the page shows."""
_THUMBNAIL = 240
"""Pixels along the longer side of a neighbour."""

router = APIRouter(tags=["Page"])


def make_ready(service: Service, index: Index | None) -> None:
    """Prepare the page before the first request.

    What parts take is compiled, if a model gives any, and files of the index that are gone are reported. Raises
    DataError if no model gives as many features as the index has.
    """
    if index is not None and not any(_fits_index(model, index) for model in service.models.values()):
        raise DataError(
            f"--index: its features have {index.width} numbers an image, and no model here gives such; make it with "
            "ehm predict BUNDLE IMAGES --out DIR and the bundle that is served"
        )
    gone = [] if index is None else [file for file in index.files if not file.is_file()]
    if index is not None and gone:
        what = f"{len(gone)} of its {len(index)} images cannot be found, for example {gone[0]}"
        _LOG.warning("--index: %s; they are named without a picture", what)
    if any(model.manifest.output("patches") is not None for model in service.models.values()):
        warm_up()


async def _find_index(request: Request) -> Index | None:
    index: Index | None = request.app.state.index
    return index


Searched = Annotated[Index | None, Depends(_find_index)]


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Return the page itself."""
    return FileResponse(_FOLDER / "index.html", media_type="text/html", headers=_HEADERS)


@router.get("/static/{name}", include_in_schema=False)
async def static(name: str) -> FileResponse:
    """Return a file of the page."""
    kind = STATIC.get(f"/static/{name}")
    if kind is None:
        raise RequestError(404, f"there is no static/{name[:60]}")
    return FileResponse(_FOLDER / name, media_type=kind, headers=_HEADERS)


class ModelFacts(BaseModel):
    """A model: its ``task``, the ``image_size`` (height, width) that it sees, its ``outputs``, how many ``labels`` it
    knows, and whether its features can be searched for ``neighbours``.
    """

    name: str
    task: str
    image_size: list[int]
    outputs: list[str]
    labels: int
    neighbours: bool


class Facts(BaseModel):
    """The models that are served, and the number of images in the index; 0 without one."""

    models: list[ModelFacts]
    index: int


class View(Answer):
    """An image as the server reads it.

    Its ``size`` (width, height); the ``region`` that the model sees, as left, top, width and height in its pixels; and
    a ``preview``, a JPEG in a data: URL, of the part ``shown``: all, but of a very long image what is about the region.
    """

    size: list[int]
    region: list[float]
    shown: list[int]
    preview: str


class Neighbours(Answer):
    """The images of the index that are most alike, the most alike first."""

    neighbours: list[Neighbour]


class Hierarchy(Answer):
    """The tree of parts over the patches of the ``grid`` (rows, columns), and partitions from fine to coarse.

    ``height`` is the tree's; its nodes have ``colours``, #rrggbb by number. A level tells, row by row, the node that
    each patch belongs to.
    """

    grid: list[int]
    height: int
    levels: list[Level]
    colours: list[str]


@router.get("/v1/about")
async def about(service: Served, index: Searched) -> Facts:
    """Return the models, what they give, and the size of the index."""
    models = [
        ModelFacts(
            name=name,
            task=model.manifest.task,
            image_size=list(model.manifest.preprocessing.image_size),
            outputs=model.manifest.output_names,
            labels=len(model.manifest.labels),
            neighbours=index is not None and _fits_index(model, index),
        )
        for name, model in service.models.items()
    ]
    return Facts(models=models, index=0 if index is None else len(index))


@router.post("/v1/view", openapi_extra=IMAGE, response_model_exclude_none=True)
async def view(service: Served, request: Request, model: Model = None) -> View:
    """Return the image as the server reads it, and the region of it that a model sees."""
    served = service.find_model(request, model)
    upload = await service.read_image(request, served)
    picture = await service.offload(request, to_photograph, upload.image, served.manifest.preprocessing.pixels)
    size = picture.size
    seen = served.predictor.handler.find_seen_region(*size)
    shown = find_surroundings(size, seen)
    left, top, width, height = shown
    part = picture if (width, height) == size else picture.crop((left, top, left + width, top + height))
    preview = await service.offload(request, _encode_jpeg, part, _PREVIEW)
    return View(
        model=served.name,
        version=served.version,
        image=upload.name,
        size=list(size),
        region=list(seen),
        shown=list(shown),
        preview=f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}",
    )


@router.post("/v1/neighbours", openapi_extra=IMAGE, response_model_exclude_none=True)
async def neighbours(
    service: Served,
    index: Searched,
    request: Request,
    model: Model = None,
    top: Annotated[int, Query(ge=1, le=100, description="how many images")] = 8,
) -> Neighbours:
    """Return the images of the index whose features are most like those of this image, by cosine."""
    if index is None:
        raise RequestError(404, "this server has no index; ehm serve --index DIR gives it one")
    served = service.find_model(request, model)
    if not _fits_index(served, index):
        raise RequestError(400, f"the model {served.name} does not give {index.width} features, as the index has")
    features, name = await compute_row(service, request, served, "features")
    found = await service.offload(request, index.search, features, top)
    return Neighbours(model=served.name, version=served.version, image=name, neighbours=found)


@router.get("/v1/index/{number}", response_class=Response, responses={200: {"content": {"image/jpeg": BINARY}}})
# the number, not a path, names an image: a client cannot ask for other files
async def thumbnail(service: Served, index: Searched, request: Request, number: int) -> Response:
    """Return a small JPEG of an image of the index, by its number."""
    if index is None or not 0 <= number < len(index):
        raise RequestError(404, f"there is no image {str(number)[:20]} in the index")
    pixels = RGB_BYTES
    for model in service.models.values():
        if _fits_index(model, index):
            # shown as the model that was searched with sees it
            pixels = model.manifest.preprocessing.pixels
            break

    def read_thumbnail() -> bytes:
        file = index.files[number]
        if pixels.is_rgb:
            return _encode_jpeg(decode_image(file, formats=FORMATS, value_range=pixels.range), _THUMBNAIL)
        return _encode_jpeg(to_photograph(read_channels(file, pixels), pixels), _THUMBNAIL)

    try:
        small = await service.offload(request, read_thumbnail)
    except BrokenImage:
        raise RequestError(404, f"image {number} of the index cannot be read any more") from None
    return Response(small, media_type="image/jpeg", headers=_HEADERS | {"Cache-Control": "private, max-age=600"})


@router.post("/v1/parts", openapi_extra=IMAGE, response_model_exclude_none=True)
async def parts(service: Served, request: Request, model: Model = None) -> Hierarchy:
    """Return the parts of what a model sees of an image, at several depths of their hierarchy."""
    served = service.find_model(request, model)
    if served.manifest.output("patches") is None:
        raise RequestError(
            400, f"the model {served.name} gives no patches; ehm export --head multi writes a bundle that does"
        )
    patches, name = await compute_row(service, request, served, "patches")
    try:
        found = await service.offload(request, take_apart, patches)
    except DataError as error:
        raise RequestError(422, str(error)) from None
    return Hierarchy(model=served.name, version=served.version, image=name, **vars(found))


def _fits_index(model: ServedModel, index: Index) -> bool:
    """Return whether the model gives as many features as the index has."""
    features = model.manifest.output("features")
    return features is not None and features.shape[1] == index.width


def _encode_jpeg(image: Image.Image, side: int) -> bytes:
    """Return the image as a JPEG of at most ``side`` pixels; it is shrunk in place, to hold no second large one."""
    # thumbnail keeps the proportions and never enlarges
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    content = BytesIO()
    image.save(content, "JPEG", quality=90)
    return content.getvalue()
